// How large a block of constrain's kernels is, and a row's move by its token, which any of them may make.
#pragma once

#include "constrain.h"

namespace vstar {
namespace {

#ifndef VSTAR_BLOCK_THREADS
#define VSTAR_BLOCK_THREADS 256  // a power of two; the tests run small blocks on the CPU
#endif
constexpr int kThreads = VSTAR_BLOCK_THREADS;

__device__ void move_row(const Arena& a, const RowStates& rows, int32_t r, int64_t token) {
  const int32_t before = rows.state[r];
  rows.state[r] = after_token(a, before, token, rows.remaining[r]);
  rows.remaining[r] = remaining_after(before, rows.remaining[r]);
  rows.step[r] += 1;
}

}  // namespace
}  // namespace vstar
