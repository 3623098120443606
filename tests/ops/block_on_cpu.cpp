// Runs the kernels of constrain.cu without a GPU: 8 threads stand for a block and meet at every barrier.
// Slow, but it is the kernels' own source, so that what the threads of a block share is tested everywhere.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define VSTAR_BLOCK_THREADS 8
#define __device__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(threads)

using std::exp;
using std::log;
using std::max;
using std::min;

namespace {

struct Index {
  int x, y;
};
thread_local Index threadIdx, blockIdx;
pthread_barrier_t meeting;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

void __syncthreads() { pthread_barrier_wait(&meeting); }
void atomicOr(uint32_t* word, uint32_t bits) { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

int32_t atomicAdd(int32_t* to, int32_t more) { return __atomic_fetch_add(to, more, __ATOMIC_SEQ_CST); }
void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

int32_t __float_as_int(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

float __int_as_float(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace

#include "../../csrc/constrain.cu"

using namespace vstar;

namespace {

// One block after another, each by its threads.
template <class Kernel>
void launch(int blocks_x, int blocks_y, Kernel kernel) {
  pthread_barrier_init(&meeting, nullptr, VSTAR_BLOCK_THREADS);
  std::vector<std::thread> threads;
  for (int t = 0; t < VSTAR_BLOCK_THREADS; ++t)
    threads.emplace_back([=] {
      for (int x = 0; x < blocks_x; ++x)
        for (int y = 0; y < blocks_y; ++y) {
          threadIdx = {t, 0};
          blockIdx = {x, y};
          pthread_barrier_wait(&meeting);
          kernel();
        }
    });
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&meeting);
}

Arena arena_at(const uint8_t* block) {
  ArenaHeader header;
  std::memcpy(&header, block, sizeof header);
  return {header, block};
}

int row_blocks(const RowStates& rows) { return (rows.rows + VSTAR_BLOCK_THREADS - 1) / VSTAR_BLOCK_THREADS; }
int slices(const Arena& a) { return (a.vocabulary + kSliceBits - 1) / kSliceBits; }

}  // namespace

extern "C" {

void advance(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count,
             const int64_t* tokens) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  launch(row_blocks(rows), 1, [=] { advance_rows(a, rows, tokens); });
}

void forced(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count,
            int64_t* tokens, int32_t* lengths, int32_t most, int32_t advance) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  launch(row_blocks(rows), 1, [=] { forced_rows(a, rows, tokens, lengths, most, advance != 0); });
}

void mask(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count, void* data,
          int32_t type, int64_t stride) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  if (type == 0)
    launch(count, slices(a), [=] { mask_rows(a, rows, static_cast<uint32_t*>(data), stride, 0xFF800000u); });
  else
    launch(count, slices(a), [=] {
      mask_rows(a, rows, static_cast<uint16_t*>(data), stride,
                static_cast<uint16_t>(type == 1 ? 0xFC00 : 0xFF80));
    });
}

void advance_mask(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count,
                  const int64_t* tokens, int32_t* tickets, void* data, int32_t type, int64_t stride) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  const int32_t every = slices(a);
  if (type == 0)
    launch(count, every, [=] {
      advance_mask_rows(a, rows, tokens, tickets, every, static_cast<uint32_t*>(data), stride, 0xFF800000u);
    });
  else
    launch(count, every, [=] {
      advance_mask_rows(a, rows, tokens, tickets, every, static_cast<uint16_t*>(data), stride,
                        static_cast<uint16_t>(type == 1 ? 0xFC00 : 0xFF80));
    });
}

void fill(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count,
          uint32_t* out, int64_t stride) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  launch(count, slices(a), [=] { fill_rows(a, rows, out, stride); });
}

void sample(const uint8_t* block, int32_t* state, int32_t* remaining, int32_t* step, int32_t count,
            void* data, int32_t type, int64_t stride, const int64_t* seeds, int64_t* ids, float* logprobs,
            float scale, uint64_t top_p, int32_t top_k) {
  const Arena a = arena_at(block);
  const RowStates rows{state, remaining, step, count};
  const LogitsRows logits{data, static_cast<LogitsType>(type), stride};
  const DrawRows draw{seeds, ids, logprobs, scale, top_p, top_k};
  launch(count, 1, [=] { sample_rows(a, rows, logits, draw); });
}
}
