// What the lanes of a warp tell one another. The tests compile this for threads of the CPU as well.
#pragma once

#include <cstdint>

namespace vstar {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
constexpr unsigned kAll = 0xFFFFFFFFu;

// What lanes wrote to memory before is seen by all lanes after.
__device__ inline void warp_meets() { __syncwarp(kAll); }

// Maximum of `value` over the lanes below this one, and `all` over the whole warp.
__device__ inline int32_t max_before(int32_t value, int lane, int32_t* all) {
  int32_t upto = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(kAll, upto, step);
    if (lane >= step) upto = max(upto, other);
  }
  *all = __shfl_sync(kAll, upto, kWarp - 1);
  const int32_t before = __shfl_up_sync(kAll, upto, 1);
  return lane == 0 ? 0 : before;
}

// Sum of `value` over the lanes below this one, and `all` over the whole warp.
__device__ inline int32_t sum_before(int32_t value, int lane, int32_t* all) {
  int32_t upto = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(kAll, upto, step);
    if (lane >= step) upto += other;
  }
  *all = __shfl_sync(kAll, upto, kWarp - 1);
  return upto - value;
}

}  // namespace vstar
