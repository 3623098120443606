// One unit of prefix_attention: up to 48 query rows that see the same keys, as lanes of one to three vectors.
//
//   q^T [width, rows]        scores^T [128 positions, rows] = keys x q^T       softmax down each lane, online
//   out [rows, value_width] += weights^T x values                              keys and values are read once
//
// Nothing of the standard library that makes code of its own may be used here: it would be built for AVX-512
// and could be taken by the other files, too.
#include <cstring>

#include "prefix_attention.h"

namespace vstar {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

bool attention_simd() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"); }

#pragma GCC target("avx512f,avx512dq,fma")

namespace {

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));

constexpr float kLowest = -__builtin_inff();
constexpr int32_t kLanes = kAttentionLanes;

inline Vector load(const float* at) {
  Vector x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

inline void store(float* at, Vector x) { std::memcpy(at, &x, sizeof x); }

inline Vector all(float x) { return x - Vector{}; }

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// exp(x) for x <= 0 (after Cephes), to 2 units in the last place; 0 below -87.3, where it would be no normal
// number.
inline Vector exponential(Vector x) {
  const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector t = x * 1.44269504f + shift;
  const Vector n = t - shift;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Integers bits = (Integers)p + ((Integers)t << 23);
  return x < -87.3f ? all(0.0f) : (Vector)bits;
}

// Scores of P positions for V vectors of rows.
template <int V, int P>
inline void score_block(const float* keys, int64_t stride, const float* query, int32_t width, float* scores) {
  Vector sum[P][V] = {};
  for (int32_t d = 0; d < width; ++d) {
    Vector q[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) q[v] = load(query + (d * V + v) * kLanes);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const Vector k = all(keys[p * stride + d]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[p][v] += k * q[v];
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(scores + (p * V + v) * kLanes, sum[p][v]);
}

// Rows of one tile: positions `stride` floats apart, `width` floats each.
struct Rows {
  const float* at;
  int64_t stride;
  int32_t width;
};

// Has rows `from` to `from` + count brought nearer while others are worked on; past the end does no harm.
inline void fetch(const Rows& rows, int32_t from, int32_t count) {
  for (int32_t p = from; p < from + count; ++p)
    for (int32_t d = 0; d < rows.width; d += kLanes) __builtin_prefetch(rows.at + p * rows.stride + d);
}

template <int V, int P>
inline int32_t score_blocks(const Rows& keys, const Rows& values, const float* query, int32_t from,
                            int32_t count, float* scores) {
  for (; from + P <= count; from += P) {
    fetch(keys, from + P, P);
    fetch(values, from, P);
    score_block<V, P>(keys.at + from * keys.stride, keys.stride, query, keys.width,
                      scores + from * V * kLanes);
  }
  return from;
}

template <int V>
void score_tile(const Rows& keys, const Rows& values, const float* query, int32_t count, float* scores) {
  int32_t p = V == 1 ? score_blocks<V, 16>(keys, values, query, 0, count, scores) : 0;
  p = score_blocks<V, 8>(keys, values, query, p, count, scores);
  p = score_blocks<V, 4>(keys, values, query, p, count, scores);
  score_blocks<V, 1>(keys, values, query, p, count, scores);
}

// Adds R rows by C vectors of weights^T x values to out, whose rows are first scaled by `before`.
template <int R, int C>
void out_block(const float* weights, int32_t lanes, const float* values, int64_t stride, int32_t count,
               float* out, int32_t width, const float* before) {
  Vector sum[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c] = load(out + r * width + c * kLanes) * before[r];
  for (int32_t p = 0; p < count; ++p) {
    Vector v[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) v[c] = load(values + p * stride + c * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Vector w = all(weights[p * lanes + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += w * v[c];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out + r * width + c * kLanes, sum[r][c]);
}

using OutBlock = void (*)(const float*, int32_t, const float*, int64_t, int32_t, float*, int32_t,
                          const float*);

template <int R>
constexpr OutBlock kByVectors[4] = {out_block<R, 1>, out_block<R, 2>, out_block<R, 3>, out_block<R, 4>};
constexpr const OutBlock* kOutBlocks[6] = {kByVectors<1>, kByVectors<2>, kByVectors<3>,
                                           kByVectors<4>, kByVectors<5>, kByVectors<6>};

// What one unit works on.
struct Work {
  float *query, *scores, *out, *rest, *top, *sum, *before;
  int32_t token[kAttentionRows], head[kAttentionRows], seen[kAttentionRows], member[kAttentionRows];
  int32_t rows, vectors, padded;  // padded: value width in whole vectors, in floats
};

int32_t padded_width(const AttentionRows& rows) { return (rows.value_width + kLanes - 1) / kLanes * kLanes; }

Work work_in(const AttentionRows& rows, float* scratch) {
  Work w{};
  w.padded = padded_width(rows);
  w.query = scratch;
  w.scores = w.query + rows.width * kAttentionRows;
  w.out = w.scores + kAttentionTile * kAttentionRows;
  w.rest = w.out + kAttentionRows * w.padded;
  w.top = w.rest + kAttentionTile * kLanes;
  w.sum = w.top + kAttentionRows;
  w.before = w.sum + kAttentionRows;
  return w;
}

// The rows of the unit that are somebody's; the most positions that one of them sees.
int32_t find_rows(const AttentionRows& rows, const AttentionSegment& s, int32_t group, int32_t key_head,
                  int32_t first, Work& w) {
  const int32_t times = rows.heads / rows.key_heads;
  const int32_t end = s.members * times < first + kAttentionRows ? s.members * times : first + kAttentionRows;
  int32_t most = 0;
  for (int32_t i = first; i < end; ++i) {
    const int32_t member = i / times;
    const int64_t token = s.tokens[int64_t{group} * s.members + member];
    if (token < 0) continue;
    int64_t seen = s.causal ? member + 1 : s.positions;
    if (s.visible != nullptr)
      seen = s.visible[int64_t{group} * s.visible_members + (s.visible_members > 1 ? member : 0)];
    seen = seen < 0 ? 0 : seen > s.positions ? s.positions : seen;
    w.token[w.rows] = static_cast<int32_t>(token);
    w.head[w.rows] = key_head * times + i % times;
    w.member[w.rows] = member;
    w.seen[w.rows++] = static_cast<int32_t>(seen);
    most = seen > most ? static_cast<int32_t>(seen) : most;
  }
  w.vectors = (w.rows + kLanes - 1) / kLanes;
  return most;
}

void load_rows(const AttentionRows& rows, Work& w) {
  const int32_t lanes = w.vectors * kLanes;
  std::memset(w.query, 0, sizeof(float) * static_cast<size_t>(rows.width) * static_cast<size_t>(lanes));
  for (int32_t i = 0; i < lanes; ++i) w.top[i] = kLowest, w.sum[i] = 0, w.before[i] = 0;
  for (int32_t i = 0; i < w.rows; ++i) {
    const float* q = rows.query + w.token[i] * rows.token_stride + w.head[i] * rows.head_stride;
    for (int32_t d = 0; d < rows.width; ++d) w.query[d * lanes + i] = q[d] * rows.scale;
    const int64_t place = int64_t{w.token[i]} * rows.heads + w.head[i];
    w.top[i] = rows.top[place];
    w.sum[i] = rows.sum[place];
    float* out = w.out + i * w.padded;
    for (int32_t d = rows.value_width; d < w.padded; ++d) out[d] = 0;
    std::memcpy(out, rows.out + place * rows.value_width,
                sizeof(float) * static_cast<size_t>(rows.value_width));
  }
}

void store_rows(const AttentionRows& rows, const Work& w) {
  for (int32_t i = 0; i < w.rows; ++i) {
    const int64_t place = int64_t{w.token[i]} * rows.heads + w.head[i];
    rows.top[place] = w.top[i];
    rows.sum[place] = w.sum[i];
    std::memcpy(rows.out + place * rows.value_width, w.out + i * w.padded,
                sizeof(float) * static_cast<size_t>(rows.value_width));
  }
}

void hide(const AttentionSegment& s, int32_t group, int32_t start, int32_t count, Work& w) {
  const int32_t lanes = w.vectors * kLanes;
  for (int32_t v = 0; v < w.vectors; ++v) {
    Integers seen;
    std::memcpy(&seen, w.seen + v * kLanes, sizeof seen);
    for (int32_t p = 0; p < count; ++p) {
      float* at = w.scores + p * lanes + v * kLanes;
      store(at, (Integers{} + (start + p)) < seen ? load(at) : all(kLowest));
    }
  }
  if (s.mask == nullptr) return;
  for (int32_t i = 0; i < w.rows; ++i) {
    const int32_t member = s.mask_members > 1 ? w.member[i] : 0;
    const uint8_t* shown = s.mask + (int64_t{group} * s.mask_members + member) * s.positions + start;
    for (int32_t p = 0; p < count; ++p)
      if (!shown[p]) w.scores[p * lanes + i] = kLowest;
  }
}

// Scores become weights relative to the largest score so far; `before` scales what was summed until now.
void weigh(int32_t count, Work& w) {
  const int32_t lanes = w.vectors * kLanes;
  for (int32_t v = 0; v < w.vectors; ++v) {
    float* scores = w.scores + v * kLanes;
    const Vector old = load(w.top + v * kLanes);
    Vector top = old;
    for (int32_t p = 0; p < count; ++p) top = larger(load(scores + p * lanes), top);
    const Vector base = top == kLowest ? all(0.0f) : top;
    const Vector before = exponential(old - base);
    Vector sum = load(w.sum + v * kLanes) * before;
    for (int32_t p = 0; p < count; ++p) {
      const Vector weight = exponential(load(scores + p * lanes) - base);
      store(scores + p * lanes, weight);
      sum += weight;
    }
    store(w.top + v * kLanes, top);
    store(w.sum + v * kLanes, sum);
    store(w.before + v * kLanes, before);
  }
}

void add_values(const AttentionRows& rows, const float* values, int64_t stride, int32_t count, Work& w) {
  const int32_t lanes = w.vectors * kLanes, whole = rows.value_width / kLanes;
  if (w.padded != rows.value_width)
    for (int32_t p = 0; p < count; ++p) {
      store(w.rest + p * kLanes, Vector{});
      std::memcpy(w.rest + p * kLanes, values + p * stride + whole * kLanes,
                  sizeof(float) * static_cast<size_t>(rows.value_width - whole * kLanes));
    }
  for (int32_t r = 0; r < w.rows; r += 6) {
    const OutBlock* blocks = kOutBlocks[(w.rows - r < 6 ? w.rows - r : 6) - 1];
    float* out = w.out + r * w.padded;
    for (int32_t c = 0; c < whole; c += 4)
      blocks[(whole - c < 4 ? whole - c : 4) - 1](w.scores + r, lanes, values + c * kLanes, stride, count,
                                                  out + c * kLanes, w.padded, w.before + r);
    if (w.padded != rows.value_width)
      blocks[0](w.scores + r, lanes, w.rest, kLanes, count, out + whole * kLanes, w.padded, w.before + r);
  }
}

}  // namespace

int64_t attention_scratch(const AttentionRows& rows) {
  return int64_t{kAttentionRows} * (rows.width + kAttentionTile + padded_width(rows) + 3) +
         kAttentionTile * kLanes;
}

void attention_unit(const AttentionRows& rows, const AttentionSegment& s, int32_t group, int32_t key_head,
                    int32_t first, float* scratch) {
  Work w = work_in(rows, scratch);
  const int32_t most = find_rows(rows, s, group, key_head, first, w);
  if (most == 0) return;
  load_rows(rows, w);
  int32_t least = most;
  for (int32_t i = 0; i < w.rows; ++i) least = w.seen[i] < least ? w.seen[i] : least;
  const int64_t slot = s.slots == nullptr ? group : s.slots[group];
  const float* keys = s.keys + slot * s.key_slot + key_head * s.key_head;
  const float* values = s.values + slot * s.value_slot + key_head * s.value_head;
  for (int32_t start = 0; start < most; start += kAttentionTile) {
    const int32_t count = most - start < kAttentionTile ? most - start : kAttentionTile;
    const auto scores = w.vectors == 1 ? score_tile<1> : w.vectors == 2 ? score_tile<2> : score_tile<3>;
    const Rows ahead{values + start * s.value_position, s.value_position, rows.value_width};
    scores({keys + start * s.key_position, s.key_position, rows.width}, ahead, w.query, count, w.scores);
    if (s.mask != nullptr || least < start + count) hide(s, group, start, count, w);
    weigh(count, w);
    add_values(rows, values + start * s.value_position, s.value_position, count, w);
  }
  store_rows(rows, w);
}

#else

bool attention_simd() { return false; }
int64_t attention_scratch(const AttentionRows&) { return 0; }
void attention_unit(const AttentionRows&, const AttentionSegment&, int32_t, int32_t, int32_t, float*) {}

#endif

}  // namespace vstar
