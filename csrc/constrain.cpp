// constrain on the CPU: masks, bitmasks, moves. One thread owns whole rows.
#include <vector>

#include "constrain_rows.h"
#include "constrain_simd.h"

namespace vstar {
namespace {

// ---- masks ----

struct MaskScratch {
  std::vector<uint32_t> bits;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> kept;
};

template <class T>
struct Stores;
template <>
struct Stores<uint16_t> {
  static void fill(const MaskKernels& k, uint16_t* x, int64_t n, uint16_t v) { k.fill16(x, n, v); }
  static void keep(const MaskKernels& k, uint16_t* x, int64_t n, uint16_t v, const uint32_t* b) {
    k.keep16(x, n, v, b);
  }
};
template <>
struct Stores<uint32_t> {
  static void fill(const MaskKernels& k, uint32_t* x, int64_t n, uint32_t v) { k.fill32(x, n, v); }
  static void keep(const MaskKernels& k, uint32_t* x, int64_t n, uint32_t v, const uint32_t* b) {
    k.keep32(x, n, v, b);
  }
};

template <class T>
void mask_row(const Arena& a, int32_t state, int32_t remaining, T* x, T low, MaskScratch& scratch) {
  const MaskKernels& kernels = mask_kernels();
  if (state == kFree) return;
  if (state >= 0 && state < a.dense) {
    scratch.bits.resize(static_cast<size_t>(a.words));
    dense_bits(a, state, remaining, scratch.bits.data());
    Stores<T>::keep(kernels, x, a.vocabulary, low, scratch.bits.data());
    return;
  }
  scratch.tokens.clear();
  scratch.kept.clear();
  each_token(a, state, remaining, [&](int32_t token) {
    scratch.tokens.push_back(token);
    scratch.kept.push_back(x[token]);
  });
  Stores<T>::fill(kernels, x, a.vocabulary, low);
  for (size_t i = 0; i < scratch.tokens.size(); ++i) x[scratch.tokens[i]] = static_cast<T>(scratch.kept[i]);
}

// ---- bitmasks ----

void clear_words(const Arena& a, uint32_t* out, int32_t filled) {
  if (filled == kUnknownFill || filled == kFree || (filled >= 0 && filled < a.dense)) {
    std::fill_n(out, a.words, 0u);
    return;
  }
  if (filled < 0) {
    for (int32_t i = 0; i < a.eos_count; ++i) out[a.eos[i] >> 5] = 0;
    return;
  }
  for (int32_t e = a.first[filled]; e < a.first[filled + 1]; ++e) out[token_of(a, e) >> 5] = 0;
}

void fill_row(const Arena& a, int32_t state, int32_t remaining, uint32_t* out, int32_t* filled) {
  const bool dense = state >= 0 && state < a.dense;
  if (state != kFree && !dense) clear_words(a, out, filled ? *filled : kUnknownFill);
  if (state == kFree)
    std::fill_n(out, a.words, ~0u);
  else if (dense)
    dense_bits(a, state, remaining, out);
  else
    each_token(a, state, remaining, [out](int32_t token) { out[token >> 5] |= 1u << (token & 31); });
  if (filled) *filled = state;
}

}  // namespace

int32_t constrain_advance_cpu(const Arena& a, const RowStates& rows, const int64_t* tokens) {
  int32_t lost = 0;
  for (int32_t r = 0; r < rows.rows; ++r) lost += advance_row(a, rows, r, tokens[r]);
  return lost;
}

void constrain_mask_cpu(const Arena& a, const RowStates& rows, const LogitsRows& logits, int threads) {
  const bool wide = logits.type == LogitsType::kFloat32;
  const int64_t bytes = static_cast<int64_t>(rows.rows) * a.vocabulary * (wide ? 4 : 2);
  each_row<MaskScratch>(rows.rows, bytes, threads, [&](int32_t r, MaskScratch& scratch) {
    const int32_t state = state_within(rows.state[r], rows.remaining[r]);
    const int64_t at = r * logits.stride;
    const uint16_t half = logits.type == LogitsType::kFloat16 ? 0xFC00 : 0xFF80;
    if (wide)
      mask_row<uint32_t>(a, state, rows.remaining[r], static_cast<uint32_t*>(logits.data) + at, 0xFF800000u,
                         scratch);
    else
      mask_row<uint16_t>(a, state, rows.remaining[r], static_cast<uint16_t*>(logits.data) + at, half,
                         scratch);
  });
}

void constrain_forced_cpu(const Arena& a, const RowStates& rows, int64_t* tokens, int32_t* lengths,
                          int32_t most, bool advance) {
  for (int32_t r = 0; r < rows.rows; ++r) force_row(a, rows, r, tokens, lengths, most, advance);
}

void constrain_fill_cpu(const Arena& a, const RowStates& rows, uint32_t* out, int64_t stride,
                        int32_t* filled) {
  for (int32_t r = 0; r < rows.rows; ++r)
    fill_row(a, state_within(rows.state[r], rows.remaining[r]), rows.remaining[r], out + r * stride,
             filled ? filled + r : nullptr);
}

}  // namespace vstar
