// constrain's draws on the CPU: one thread owns whole rows. Built without fused multiply-adds (see draw.h).
#include <cmath>
#include <functional>
#include <limits>

#include "constrain_rows.h"
#include "draw.h"
#include "sample.h"

namespace vstar {
namespace {

struct DrawScratch {
  std::vector<int32_t> tokens, order;
  std::vector<float> values, sorted, row;
};

float logit_at(const LogitsRows& logits, int64_t at) {
  switch (logits.type) {
    case LogitsType::kFloat16:
      return float_of_half(static_cast<const uint16_t*>(logits.data)[at]);
    case LogitsType::kBfloat16:
      return float_of_bfloat(static_cast<const uint16_t*>(logits.data)[at]);
    default:
      return static_cast<const float*>(logits.data)[at];
  }
}

// Sets the values that top-k and top-p leave out to -inf.
void filter(const DrawRows& draw, float top, DrawScratch& s) {
  const float out = -std::numeric_limits<float>::infinity();
  const size_t count = s.values.size();
  if (draw.top_k > 0 && static_cast<size_t>(draw.top_k) < count) {
    s.sorted = s.values;
    std::nth_element(s.sorted.begin(), s.sorted.begin() + draw.top_k - 1, s.sorted.end(),
                     std::greater<float>());
    const float floor = s.sorted[static_cast<size_t>(draw.top_k) - 1];
    for (float& value : s.values) value = value < floor ? out : value;
  }
  if (draw.top_p >= 1ull << 62) return;
  s.order.resize(count);
  int64_t total = 0, before = 0;
  for (size_t i = 0; i < count; ++i) {
    s.order[i] = static_cast<int32_t>(i);
    total += draw_weight(s.values[i], top, draw.scale);
  }
  std::stable_sort(s.order.begin(), s.order.end(),
                   [&](int32_t x, int32_t y) { return s.values[x] > s.values[y]; });
  const Scaled limit = scale_bits(draw.top_p, total);
  for (const int32_t i : s.order) {
    const float value = s.values[i];
    if (before > limit.whole || (before == limit.whole && !limit.rest)) s.values[i] = out;
    before += draw_weight(value, top, draw.scale);
  }
}

struct Drawn {
  int32_t token;
  float logprob;
};

constexpr Drawn no_token() { return {-1, std::numeric_limits<float>::quiet_NaN()}; }

// Draws among s.tokens with logits s.values.
Drawn draw_among(const DrawRows& draw, uint64_t bits, DrawScratch& s) {
  const float infinity = std::numeric_limits<float>::infinity();
  float top = -infinity;
  bool numbers = true;
  for (const float value : s.values) {
    numbers &= value < infinity;  // false for NaN
    top = value > top ? value : top;
  }
  if (!numbers || top == -infinity) return no_token();
  double sum = 0;
  for (const float value : s.values) sum += std::exp(static_cast<double>(value) - static_cast<double>(top));
  size_t chosen = 0;
  if (draw.scale == 0.0f) {
    while (s.values[chosen] != top) ++chosen;
    return {s.tokens[chosen], static_cast<float>(-std::log(sum))};
  }
  const bool filtered = draw.top_k > 0 || draw.top_p < 1ull << 62;
  if (filtered) s.row = s.values;
  if (filtered) filter(draw, top, s);
  int64_t total = 0;
  for (const float value : s.values) total += draw_weight(value, top, draw.scale);
  int64_t left = scale_down(bits, total);
  for (; chosen + 1 < s.values.size(); ++chosen) {
    left -= draw_weight(s.values[chosen], top, draw.scale);
    if (left < 0) break;
  }
  const float value = filtered ? s.row[chosen] : s.values[chosen];
  return {s.tokens[chosen], static_cast<float>(static_cast<double>(value) - top - std::log(sum))};
}

// Rows that may take almost anything: the whole row through `sample`, which reads it in vectors.
Drawn draw_wide(int64_t seed, uint64_t step, float scale, int32_t vocabulary, const DrawScratch& s) {
  int64_t id;
  float logprob;
  const SampleRows view{s.row.data(), s.row.data(), &seed,     &id, &logprob, 1,
                        vocabulary,   vocabulary,   vocabulary};
  sample_cpu(view, step, scale, 1);
  return {static_cast<int32_t>(id), logprob};
}

Drawn draw_row(const Arena& a, const RowStates& rows, const LogitsRows& logits, const DrawRows& draw,
               int32_t r, DrawScratch& s) {
  const int64_t base = r * logits.stride;
  const int32_t state = state_within(rows.state[r], rows.remaining[r]);
  const auto step = static_cast<uint64_t>(rows.step[r]);
  const bool wide = state == kFree || (state >= 0 && state < a.dense);
  const bool filtered = draw.scale != 0.0f && (draw.top_k > 0 || draw.top_p < 1ull << 62);
  s.tokens.clear();
  s.values.clear();
  if (!wide) {
    each_token(a, state, rows.remaining[r], [&](int32_t token) {
      s.tokens.push_back(token);
      s.values.push_back(logit_at(logits, base + token));
    });
    return draw_among(draw, stream_bits(draw.seeds[r], step), s);
  }
  std::vector<uint32_t> bits;
  if (state != kFree) {
    bits.resize(static_cast<size_t>(a.words));
    dense_bits(a, state, rows.remaining[r], bits.data());
  }
  s.row.resize(static_cast<size_t>(a.vocabulary));
  for (int32_t token = 0; token < a.vocabulary; ++token) {
    const bool allowed = state == kFree || bit_of(bits.data(), token);
    const float value = allowed ? logit_at(logits, base + token) : -std::numeric_limits<float>::infinity();
    s.row[token] = value;
    if (!filtered || !allowed) continue;
    s.tokens.push_back(token);
    s.values.push_back(value);
  }
  return filtered ? draw_among(draw, stream_bits(draw.seeds[r], step), s)
                  : draw_wide(draw.seeds[r], step, draw.scale, a.vocabulary, s);
}

}  // namespace

void constrain_sample_cpu(const Arena& a, const RowStates& rows, const LogitsRows& logits,
                          const DrawRows& draw, int threads) {
  int64_t bytes = 0;
  for (int32_t r = 0; r < rows.rows; ++r)
    if (rows.state[r] == kFree || (rows.state[r] >= 0 && rows.state[r] < a.dense))
      bytes += 8LL * a.vocabulary;
  each_row<DrawScratch>(rows.rows, bytes, threads, [&](int32_t r, DrawScratch& scratch) {
    const Drawn drawn = draw_row(a, rows, logits, draw, r, scratch);
    draw.ids[r] = drawn.token;
    draw.logprobs[r] = drawn.logprob;
    if (drawn.token >= 0) advance_row(a, rows, r, drawn.token);
  });
}

}  // namespace vstar
