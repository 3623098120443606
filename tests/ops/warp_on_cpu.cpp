// Runs the kernel of label_match.cu without a GPU: 32 threads stand for the lanes of a warp and meet at every
// ballot and shuffle. Slow, but it is the kernel's own source, so its joining of lanes is tested everywhere.
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#define __device__
#define __global__ static

using std::max;

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

int32_t __shfl_sync(unsigned, int32_t mine, int lane) {
  return exchange(mine, [lane] { return slots[lane]; });
}

int32_t __shfl_up_sync(unsigned, int32_t mine, int step) {
  return exchange(mine, [step] { return slots[lane_id() >= step ? lane_id() - step : lane_id()]; });
}

int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
void atomicOr(uint32_t* word, uint32_t bits) { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

}  // namespace

#include "../../csrc/label_match.cu"

// The arguments of vstar_fast._C.label_match_cpu, without threads.
extern "C" void label_match_warp(const uint8_t* tables, const uint8_t* text, const int64_t* offsets,
                                 const int32_t* own, int32_t rows, int32_t* out, uint32_t* which,
                                 int32_t which_words) {
  using namespace vstar;
  const LabelTables view(*reinterpret_cast<const LabelHeader*>(tables), tables);
  const LabelRows job{text, offsets, own, rows, out, which, which_words};
  pthread_barrier_init(&meeting, nullptr, 32);
  std::vector<std::thread> lanes;
  for (int lane = 0; lane < 32; ++lane)
    lanes.emplace_back([=] {
      for (int32_t r = 0; r < rows; ++r) {
        blockIdx.x = r / kRowsPerBlock;
        threadIdx.x = r % kRowsPerBlock * kWarp + lane;
        match_rows(view, job);
      }
    });
  for (std::thread& lane : lanes) lane.join();
  pthread_barrier_destroy(&meeting);
}
