// The draw of constrain on the GPU: a block owns one row. Candidates are the row's edges, the set bits of a
// dense row, or every column; sums over them are joined in shared memory, in integers, so that their order
// does not matter.
#pragma once

#include "constrain_block.cuh"
#include "draw.h"

namespace vstar {
namespace {

__device__ float logit_of(const LogitsRows& logits, int64_t at) {
  if (logits.type == LogitsType::kFloat32) return static_cast<const float*>(logits.data)[at];
  const uint16_t half = static_cast<const uint16_t*>(logits.data)[at];
  return logits.type == LogitsType::kFloat16 ? float_of_half(half) : float_of_bfloat(half);
}

// Integers in the order of the floats; both zeros are one, and NaN is above +inf.
__device__ int32_t order_of(float x) {
  if (x != x) return 0x7FFFFFFF;
  const int32_t bits = __float_as_int(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

__device__ float float_of_order(int32_t key) { return __int_as_float(key ^ ((key >> 31) & 0x7FFFFFFF)); }

template <class T, class Join>
__device__ T block_join(T value, T* shared, Join join) {
  __syncthreads();
  shared[threadIdx.x] = value;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + step]);
  }
  __syncthreads();
  return shared[0];
}

// The legal tokens of one row by place: edges of a sparse row, columns of a wide one, ends of a done one.
struct Candidates {
  const Arena& a;
  int32_t state, remaining;
  bool wide;
  int32_t count;

  __device__ Candidates(const Arena& arena, int32_t s, int32_t left) : a(arena), state(s), remaining(left) {
    wide = s == kFree || (s >= 0 && s < a.dense);
    count = wide ? a.vocabulary : s < 0 ? a.eos_count : a.first[s + 1] - a.first[s];
  }

  // Token at a place, -1 when it is not legal.
  __device__ int32_t token(int32_t place) const {
    if (state == kFree) return place;
    if (state < 0) return a.eos[place];
    if (!wide) {
      const int32_t e = a.first[state] + place;
      return is_legal(a, a.next[e], remaining) ? token_of(a, e) : -1;
    }
    if (!bit_of(a.bits + static_cast<int64_t>(state) * a.words, place)) return -1;
    if (all_legal(a, state, remaining)) return place;
    const int32_t last = a.first[state + 1], e = lower_edge(a, a.first[state], last, place);
    const int32_t next = e < last && token_of(a, e) == place ? a.next[e] : a.fallback[state];
    return next != kLost && is_legal(a, next, remaining) ? place : -1;
  }
};

constexpr int32_t kLowest = -0x7FFFFFFF - 1;

struct RowDraw {
  const Candidates& from;
  const LogitsRows& logits;
  const DrawRows& draw;
  int64_t base;
  float top;
  int64_t* sums;  // [kThreads] shared

  // Order key of the logit at a place, kLowest when the token is not legal.
  __device__ int32_t key(int32_t place) const {
    const int32_t token = from.token(place);
    return token < 0 ? kLowest : order_of(logit_of(logits, base + token));
  }

  __device__ int64_t weight(int32_t k) const {
    return k == kLowest ? 0 : draw_weight(float_of_order(k), top, draw.scale);
  }

  // What `value(key, place)` adds up to over all places.
  template <class Value>
  __device__ int64_t total(Value value) const {
    int64_t sum = 0;
    for (int32_t p = threadIdx.x; p < from.count; p += kThreads) sum += value(key(p), p);
    return block_join(sum, sums, [](int64_t x, int64_t y) { return x + y; });
  }

  // Largest key with at least `draw.top_k` keys not below it, by bisection over the 32 bits of a key.
  __device__ int32_t kth_key() const {
    int64_t low = kLowest, high = order_of(top);
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (total([=](int32_t k, int32_t) { return static_cast<int64_t>(k >= middle); }) >= draw.top_k)
        low = middle;
      else
        high = middle - 1;
    }
    return static_cast<int32_t>(low);
  }

  // Of the places in order of falling logit, then rising place, top-p keeps the shortest beginning that
  // weighs `limit`. Finds its last key and, among places with that key, the last place.
  __device__ void cut_top_p(int32_t floor, int64_t limit, int32_t* last_key, int32_t* last_place) const {
    int64_t low = kLowest, high = order_of(top);
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      const auto above = [=](int32_t k, int32_t) { return k >= middle && k >= floor ? weight(k) : 0; };
      if (total(above) >= limit)
        low = middle;
      else
        high = middle - 1;
    }
    const auto cut = static_cast<int32_t>(low);
    const int64_t before = total([=](int32_t k, int32_t) { return k > cut && k >= floor ? weight(k) : 0; });
    int32_t first = 0, end = from.count - 1;
    while (first < end) {
      const int32_t middle = first + (end - first) / 2;
      const auto among = [=](int32_t k, int32_t p) { return k == cut && p <= middle ? weight(k) : 0; };
      if (before + total(among) >= limit)
        end = middle;
      else
        first = middle + 1;
    }
    *last_key = cut;
    *last_place = first;
  }
};

__device__ Scaled ceil_of(uint64_t share, int64_t total) {
  const Scaled scaled = scale_bits(share, total);
  return {scaled.whole + (scaled.rest ? 1 : 0), false};
}

// Place of the first running sum above `target`: whole strips of kThreads places first, then one strip.
__device__ int32_t place_of(const RowDraw& row, int64_t target, int32_t floor, int32_t cut,
                            int32_t cut_place) {
  const auto kept = [&](int32_t p) -> int64_t {
    const int32_t k = row.key(p);
    return k >= floor && (k > cut || (k == cut && p <= cut_place)) ? row.weight(k) : 0;
  };
  int64_t before = 0;
  for (int32_t start = 0; start < row.from.count; start += kThreads) {
    const int32_t p = start + static_cast<int32_t>(threadIdx.x);
    const int64_t mine = p < row.from.count ? kept(p) : 0;
    const int64_t strip = block_join(mine, row.sums, [](int64_t x, int64_t y) { return x + y; });
    if (before + strip <= target) {
      before += strip;
      continue;
    }
    __syncthreads();
    row.sums[threadIdx.x] = mine;
    __syncthreads();
    int32_t place = start;
    for (int64_t running = before; place < start + kThreads - 1; ++place) {
      running += row.sums[place - start];
      if (running > target) break;
    }
    __syncthreads();
    return place;
  }
  return row.from.count - 1;
}

__global__ void __launch_bounds__(kThreads)
    sample_rows(Arena a, RowStates rows, LogitsRows logits, DrawRows draw) {
  __shared__ int64_t sums[kThreads];
  __shared__ double parts[kThreads];
  const int32_t r = blockIdx.x;
  const Candidates from(a, state_within(rows.state[r], rows.remaining[r]), rows.remaining[r]);
  RowDraw row{from, logits, draw, r * logits.stride, 0.0f, sums};
  const float infinity = __int_as_float(0x7F800000);
  int64_t best = kLowest, bad = 0;
  for (int32_t p = threadIdx.x; p < from.count; p += kThreads) {
    const int32_t k = row.key(p);
    if (k == kLowest) continue;
    bad |= k >= order_of(infinity);
    best = max(best, static_cast<int64_t>(k));
  }
  best = block_join(best, sums, [](int64_t x, int64_t y) { return max(x, y); });
  bad = block_join(bad, sums, [](int64_t x, int64_t y) { return x | y; });
  if (bad || best <= order_of(-infinity)) {
    if (threadIdx.x == 0) draw.ids[r] = -1, draw.logprobs[r] = __int_as_float(0x7FC00000);
    return;
  }
  row.top = float_of_order(static_cast<int32_t>(best));
  double part = 0;
  for (int32_t p = threadIdx.x; p < from.count; p += kThreads) {
    const int32_t k = row.key(p);
    if (k != kLowest) part += exp(static_cast<double>(float_of_order(k)) - row.top);
  }
  const double sum = block_join(part, parts, [](double x, double y) { return x + y; });
  int32_t place = 0;
  if (draw.scale == 0.0f) {
    int64_t first = from.count;
    for (int32_t p = threadIdx.x; p < from.count; p += kThreads)
      if (row.key(p) != kLowest && float_of_order(row.key(p)) == row.top)
        first = min(first, static_cast<int64_t>(p));
    place = static_cast<int32_t>(block_join(first, sums, [](int64_t x, int64_t y) { return min(x, y); }));
  } else {
    const int32_t floor = draw.top_k > 0 ? row.kth_key() : kLowest;
    int32_t cut = kLowest, cut_place = from.count;
    int64_t total = row.total([&](int32_t k, int32_t) { return k >= floor ? row.weight(k) : 0; });
    if (draw.top_p < 1ull << 62) {
      row.cut_top_p(floor, ceil_of(draw.top_p, total).whole, &cut, &cut_place);
      const auto kept = [&](int32_t k, int32_t p) {
        return k >= floor && (k > cut || (k == cut && p <= cut_place)) ? row.weight(k) : 0;
      };
      total = row.total(kept);
    }
    const uint64_t bits = stream_bits(draw.seeds[r], static_cast<uint64_t>(rows.step[r]));
    place = place_of(row, scale_down(bits, total), floor, cut, cut_place);
  }
  if (threadIdx.x != 0) return;
  const int32_t token = from.token(place);
  const float value = float_of_order(row.key(place));
  draw.ids[r] = token;
  draw.logprobs[r] = static_cast<float>(static_cast<double>(value) - row.top - log(sum));
  move_row(a, rows, r, token);
}

}  // namespace
}  // namespace vstar
