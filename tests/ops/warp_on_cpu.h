// A GPU warp made of 32 CPU threads that meet at every ballot and shuffle. Slow, but it runs the kernels' own
// source, so their joining of lanes is tested everywhere. Include it before the .cu file.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#define __device__
#define __global__ static

using std::max;
using std::min;

namespace {

struct Index {
  int x;
};
thread_local Index threadIdx, blockIdx;
pthread_barrier_t meeting;
int32_t slots[32];

int lane_id() { return threadIdx.x % 32; }

// Every lane's value, as all lanes see it once all have come.
template <class Read>
auto exchange(int32_t mine, Read read) {
  slots[lane_id()] = mine;
  pthread_barrier_wait(&meeting);
  const auto result = read();
  pthread_barrier_wait(&meeting);
  return result;
}

unsigned __ballot_sync(unsigned, bool mine) {
  return exchange(mine, [] {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned(slots[lane] != 0) << lane;
    return bits;
  });
}

int __any_sync(unsigned all, bool mine) { return __ballot_sync(all, mine) != 0; }
void __syncwarp(unsigned all) { __ballot_sync(all, false); }

int32_t __shfl_sync(unsigned, int32_t mine, int lane) {
  return exchange(mine, [lane] { return slots[lane]; });
}

int32_t __shfl_up_sync(unsigned, int32_t mine, int step) {
  return exchange(mine, [step] { return slots[lane_id() >= step ? lane_id() - step : lane_id()]; });
}

int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
int __popc(unsigned bits) { return __builtin_popcount(bits); }
void atomicOr(uint32_t* word, uint32_t bits) { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

// Runs `kernel()` as warp `warp` of the grid, for each of `warps`.
template <class Kernel>
void run_warps(int32_t warps, int warps_per_block, Kernel kernel) {
  pthread_barrier_init(&meeting, nullptr, 32);
  std::vector<std::thread> lanes;
  for (int lane = 0; lane < 32; ++lane)
    lanes.emplace_back([=] {
      for (int32_t warp = 0; warp < warps; ++warp) {
        blockIdx.x = warp / warps_per_block;
        threadIdx.x = warp % warps_per_block * 32 + lane;
        kernel();
      }
    });
  for (std::thread& lane : lanes) lane.join();
  pthread_barrier_destroy(&meeting);
}

}  // namespace
