// prefix_attention on the CPU: levels one after the other, their units shared out to threads.
#include "prefix_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"

namespace vstar {
namespace {

constexpr int64_t kProductsPerThread = 1 << 22;

struct Unit {
  const AttentionSegment* segment;
  int32_t group, key_head, first;
};

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

std::unique_ptr<float, Free> aligned(int64_t floats) {
  const auto bytes = static_cast<size_t>((floats * 4 + 63) / 64 * 64);
  auto* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr) throw std::bad_alloc();
  return std::unique_ptr<float, Free>(memory);
}

std::vector<Unit> units_of(const AttentionRows& rows, const AttentionSegment* begin,
                           const AttentionSegment* end) {
  std::vector<Unit> units;
  for (const AttentionSegment* s = begin; s != end; ++s) {
    const int32_t each = s->members * (rows.heads / rows.key_heads);
    for (int32_t g = 0; g < s->groups; ++g)
      for (int32_t h = 0; h < rows.key_heads; ++h)
        for (int32_t first = 0; first < each; first += kAttentionRows) units.push_back({s, g, h, first});
  }
  return units;
}

// Two units that have the same token would write to its rows at once.
void check_tokens(const AttentionRows& rows, const AttentionSegment* segments, const int32_t* level_ends,
                  int32_t levels) {
  std::vector<int32_t> named(static_cast<size_t>(rows.tokens), -1);  // the last level that names a token
  const AttentionSegment* s = segments;
  for (int32_t level = 0; level < levels; ++level)
    for (; s != segments + level_ends[level]; ++s)
      for (int64_t i = 0; i < int64_t{s->groups} * s->members; ++i) {
        const int64_t token = s->tokens[i];
        if (token < 0) continue;
        int32_t& last = named[static_cast<size_t>(token)];
        if (last == level)
          throw std::invalid_argument("token " + std::to_string(token) +
                                      " is named twice in one level; put what else it sees into a level of "
                                      "its own");
        last = level;
      }
}

int64_t products(const AttentionRows& rows, const AttentionSegment* begin, const AttentionSegment* end) {
  int64_t sum = 0;
  for (const AttentionSegment* s = begin; s != end; ++s)
    sum += int64_t{s->groups} * s->members * s->positions * rows.heads * (rows.width + rows.value_width);
  return sum;
}

void run_level(const AttentionRows& rows, const AttentionSegment* begin, const AttentionSegment* end,
               int threads) {
  const std::vector<Unit> units = units_of(rows, begin, end);
  std::atomic<size_t> turn{0};
  const auto work = [&] {
    const auto scratch = aligned(attention_scratch(rows));
    for (size_t i; (i = turn.fetch_add(1)) < units.size();)
      attention_unit(rows, *units[i].segment, units[i].group, units[i].key_head, units[i].first,
                     scratch.get());
  };
  const auto useful = std::min<int64_t>(
      {threads, static_cast<int64_t>(units.size()), products(rows, begin, end) / kProductsPerThread});
  on_threads(useful, work);
}

void normalise(const AttentionRows& rows) {
  for (int64_t i = 0; i < int64_t{rows.tokens} * rows.heads; ++i) {
    const float share = rows.sum[i] > 0 ? 1 / rows.sum[i] : 0;
    float* out = rows.out + i * rows.value_width;
    for (int32_t d = 0; d < rows.value_width; ++d) out[d] *= share;
    rows.top[i] += std::log(rows.sum[i]);
  }
}

}  // namespace

void prefix_attention_cpu(const AttentionRows& rows, const AttentionSegment* segments,
                          const int32_t* level_ends, int32_t levels, int threads) {
  check_tokens(rows, segments, level_ends, levels);
  const int64_t count = int64_t{rows.tokens} * rows.heads;
  std::fill_n(rows.out, count * rows.value_width, 0.0f);
  std::fill_n(rows.top, count, -std::numeric_limits<float>::infinity());
  std::fill_n(rows.sum, count, 0.0f);
  for (int32_t i = 0; i < levels; ++i)
    run_level(rows, segments + (i == 0 ? 0 : level_ends[i - 1]), segments + level_ends[i], threads);
  normalise(rows);
}

}  // namespace vstar
