// What the CPU's row loops of constrain share.
#pragma once

#include <algorithm>
#include <atomic>

#include "constrain.h"
#include "threads.h"

namespace vstar {

constexpr int64_t kBytesPerThread = 1 << 22;

// Shares rows out to threads when `bytes` of work make that worth it; work(row, scratch) with a Scratch a
// thread.
template <class Scratch, class Work>
void each_row(int32_t rows, int64_t bytes, int threads, Work work) {
  const auto useful = static_cast<int>(std::min<int64_t>({threads, rows, bytes / kBytesPerThread}));
  std::atomic<int32_t> turn{0};
  const auto run = [&] {
    Scratch scratch;
    for (int32_t r; (r = turn.fetch_add(1)) < rows;) work(r, scratch);
  };
  on_threads(useful, run);
}

inline int32_t advance_row(const Arena& a, const RowStates& rows, int32_t r, int64_t token) {
  const int32_t before = rows.state[r];
  const int32_t after = after_token(a, before, token, rows.remaining[r]);
  rows.remaining[r] = remaining_after(before, rows.remaining[r]);
  rows.step[r] += 1;
  rows.state[r] = after;
  return before != kLost && after == kLost;
}

// Bits of a dense state's legal tokens, [words].
inline void dense_bits(const Arena& a, int32_t state, int32_t remaining, uint32_t* out) {
  const uint32_t* row = a.bits + static_cast<int64_t>(state) * a.words;
  if (all_legal(a, state, remaining)) {
    std::copy_n(row, a.words, out);
    return;
  }
  int32_t low = a.first[state];
  const int32_t last = a.first[state + 1];
  for (int32_t w = 0; w < a.words; ++w) {
    int32_t high = low;
    while (high < last && token_of(a, high) >> 5 == w) ++high;
    out[w] = dense_word(a, state, w, remaining, low, high);
    low = high;
  }
}

}  // namespace vstar
