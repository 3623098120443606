// sample on the CPU: one thread owns whole rows; a row is read in blocks that stay in the first-level cache.
// Built with -ffp-contract=off: a fused multiply-add would round differently from the other backends.
#include "sample.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "draw.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VSTAR_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VSTAR_SIMD
#endif

namespace vstar {
namespace {

constexpr int kBlock = 2048;
constexpr int64_t kElementsPerThread = 1 << 16;
constexpr float kLog2E = 1.4426950408889634f;

// Floats as integers of the same order; every NaN is outside [key(-inf), key(inf)].
inline int32_t order_key(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

VSTAR_SIMD void key_range(const float* x, int64_t n, int32_t* low, int32_t* high) {
  int32_t least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = order_key(x[i]);
    least = key < least ? key : least;
    most = key > most ? key : most;
  }
  *low = least;
  *high = most;
}

VSTAR_SIMD int64_t sum_weights(const float* x, int64_t n, float top, float scale) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<uint64_t>(draw_weight(x[i], top, scale));
  return static_cast<int64_t>(sum);
}

// Sum of exp(x - top), to 3e-7 of its value.
VSTAR_SIMD float sum_exp(const float* x, int64_t n, float top) {
  float sums[16] = {};
  const auto one = [&](int64_t i) {
    float depth = (top - x[i]) * kLog2E;
    depth = depth < 126.0f ? depth : 126.0f;
    const auto whole = static_cast<int32_t>(depth);
    const int32_t bits = (127 - whole) << 23;
    float unit;
    std::memcpy(&unit, &bits, sizeof unit);
    return power_of_rest(depth - static_cast<float>(whole)) * unit;
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; ++lane) sums[lane] += one(i + lane);
  float sum = 0;
  for (; i < n; ++i) sum += one(i);
  for (float part : sums) sum += part;
  return sum;
}

float float_of_key(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7FFFFFFF);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

int64_t draw(const float* x, int64_t n, float top, float scale, uint64_t bits, std::vector<int64_t>& blocks) {
  blocks.clear();
  int64_t total = 0;
  for (int64_t at = 0; at < n; at += kBlock) {
    blocks.push_back(sum_weights(x + at, std::min<int64_t>(kBlock, n - at), top, scale));
    total += blocks.back();
  }
  int64_t left = scale_down(bits, total);
  size_t block = 0;
  while (block + 1 < blocks.size() && left >= blocks[block]) left -= blocks[block++];
  int64_t at = static_cast<int64_t>(block) * kBlock;
  for (; at + 1 < n; ++at) {
    left -= sum_weights(x + at, 1, top, scale);
    if (left < 0) break;
  }
  return at;
}

struct Range {
  bool good;
  float top;
};

Range range_of(const float* x, int64_t n) {
  int32_t low, high;
  key_range(x, n, &low, &high);
  const float infinity = std::numeric_limits<float>::infinity();
  const bool numbers =
      low >= order_key(-infinity) && high < order_key(infinity) && high > order_key(-infinity);
  return {numbers, float_of_key(high)};
}

void sample_row(const SampleRows& rows, int64_t r, uint64_t step, float scale, std::vector<int64_t>& blocks) {
  const float* logits = rows.logits + r * rows.logits_stride;
  const float* allowed = rows.allowed + r * rows.allowed_stride;
  const int64_t n = rows.columns;
  const Range raw = range_of(logits, n);
  const Range kept = allowed == logits ? raw : range_of(allowed, n);
  if (!raw.good || !kept.good) {
    rows.ids[r] = -1;
    rows.logprobs[r] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const int64_t id = scale == 0.0f
                         ? std::find(allowed, allowed + n, kept.top) - allowed
                         : draw(allowed, n, kept.top, scale, stream_bits(rows.seeds[r], step), blocks);
  double exp_sum = 0;
  for (int64_t at = 0; at < n; at += kBlock)
    exp_sum += sum_exp(logits + at, std::min<int64_t>(kBlock, n - at), raw.top);
  rows.ids[r] = id;
  rows.logprobs[r] = logits[id] - raw.top - static_cast<float>(std::log(exp_sum));
}

}  // namespace

void sample_cpu(const SampleRows& rows, uint64_t step, float scale, int threads) {
  const int64_t elements = static_cast<int64_t>(rows.rows) * rows.columns;
  const auto useful =
      static_cast<int>(std::min<int64_t>({threads, rows.rows, elements / kElementsPerThread}));
  std::atomic<int32_t> turn{0};
  const auto work = [&] {
    std::vector<int64_t> blocks;
    for (int32_t r; (r = turn.fetch_add(1)) < rows.rows;) sample_row(rows, r, step, scale, blocks);
  };
  on_threads(useful, work);
}

}  // namespace vstar
