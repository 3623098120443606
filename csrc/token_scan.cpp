// The three forms of token_scan: one token at a time in plain C++, eight with AVX2, sixteen with AVX-512.
#include "token_scan.h"

#include <algorithm>
#include <stdexcept>

#include "token_text.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VSTAR_X86 1
#include <immintrin.h>
#endif

namespace vstar {

void TokenMasks::fit(int32_t count) {
  constexpr size_t kRoom = 15;
  const size_t tokens = static_cast<size_t>(count), words = (tokens + 63) / 64;
  if (ends.size() < tokens + kRoom) ends.resize(tokens + kRoom);
  if (label.size() < words) label.resize(words), literal.resize(words);
}

namespace {

// Flags of up to 64 tokens, joined into the words of TokenMasks.
struct Flags {
  uint64_t first = 0, inner = 0, word = 0, literal = 0;

  // `before`: the token before these ends a word; becomes that of the next.
  void store(TokenMasks& masks, int32_t at, uint64_t* before) const {
    masks.label[at >> 6] = inner | (first & ~(word << 1 | *before));
    masks.literal[at >> 6] = literal;
    *before = word >> 63;
  }
};

template <class Id>
int32_t scan_plain(const ScanJob& job, TokenMasks& masks) {
  const auto* ids = static_cast<const Id*>(job.ids);
  uint64_t before = 0;
  uint32_t every = 0;
  int32_t bytes = 0;
  for (int32_t base = 0; base < job.count; base += 64) {
    Flags flags;
    for (int32_t i = base; i < std::min(base + 64, job.count); ++i) {
      if (static_cast<uint64_t>(static_cast<int64_t>(ids[i])) >= static_cast<uint64_t>(job.vocabulary))
        return i;
      const uint32_t hint = job.hint[ids[i]];
      const auto bit = [=](uint32_t flag) { return static_cast<uint64_t>((hint & flag) != 0) << (i - base); };
      every |= hint;
      bytes += static_cast<int32_t>(hint & kHintBytes);
      masks.ends[i] = bytes;
      flags.first |= bit(kHintFirst);
      flags.inner |= bit(kHintInner);
      flags.word |= bit(kHintWord);
      flags.literal |= bit(kHintLiteral);
    }
    flags.store(masks, base, &before);
  }
  masks.ascii = (every & kHintHigh) == 0;
  return -1;
}

int32_t portable(const ScanJob& job, TokenMasks& masks) {
  return job.wide ? scan_plain<int64_t>(job, masks) : scan_plain<int32_t>(job, masks);
}

#ifdef VSTAR_X86
#define VSTAR_AVX2 __attribute__((target("avx2")))
#define VSTAR_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

// Eight ids; `bad` gets a bit for each that is outside the vocabulary. A negative one is, as a large number.
VSTAR_AVX2 __m256i load8(const ScanJob& job, int32_t at, uint32_t* bad) {
  const __m256i top = _mm256_set1_epi32(job.vocabulary - 1);
  __m256i ids, high = _mm256_setzero_si256();
  if (job.wide) {
    const auto* from = reinterpret_cast<const __m256i*>(static_cast<const int64_t*>(job.ids) + at);
    const __m256i low4 = _mm256_loadu_si256(from), high4 = _mm256_loadu_si256(from + 1);
    const __m256i pick = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i a = _mm256_permutevar8x32_epi32(low4, pick), b = _mm256_permutevar8x32_epi32(high4, pick);
    ids = _mm256_permute2x128_si256(a, b, 0x20);
    high = _mm256_permute2x128_si256(a, b, 0x31);
  } else {
    ids = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const int32_t*>(job.ids) + at));
  }
  const __m256i inside = _mm256_and_si256(_mm256_cmpeq_epi32(_mm256_min_epu32(ids, top), ids),
                                          _mm256_cmpeq_epi32(high, _mm256_setzero_si256()));
  *bad = 0xFF & ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(inside)));
  return _mm256_and_si256(ids, inside);
}

VSTAR_AVX2 uint64_t bits8(__m256i hint, uint32_t flag) {
  const __m256i shifted = _mm256_slli_epi32(hint, __builtin_clz(flag));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(shifted)));
}

VSTAR_AVX2 __m256i running_sum8(__m256i x) {
  x = _mm256_add_epi32(x, _mm256_slli_si256(x, 4));
  x = _mm256_add_epi32(x, _mm256_slli_si256(x, 8));
  const __m256i low = _mm256_permute2x128_si256(x, x, 0x08);  // low half moved up, zeros below
  return _mm256_add_epi32(x, _mm256_shuffle_epi32(low, 0xFF));
}

// Whole groups of eight; the rest of the row, in a copy padded with its first id, by the same code.
VSTAR_AVX2 int32_t avx2(const ScanJob& job, TokenMasks& masks) {
  __m256i every = _mm256_setzero_si256(), bytes = _mm256_setzero_si256();
  uint64_t before = 0;
  for (int32_t base = 0; base < job.count; base += 64) {
    Flags flags;
    for (int32_t at = base; at < std::min(base + 64, job.count); at += 8) {
      const int32_t left = job.count - at;
      ScanJob rest = job;
      int64_t copy[8] = {};
      int32_t from = at;
      if (left < 8) {
        const size_t size = job.wide ? sizeof(int64_t) : sizeof(int32_t);
        std::copy_n(static_cast<const uint8_t*>(job.ids) + static_cast<size_t>(at) * size,
                    static_cast<size_t>(left) * size, reinterpret_cast<uint8_t*>(copy));
        rest.ids = copy;
        from = 0;
      }
      uint32_t bad;
      const __m256i ids = load8(rest, from, &bad);
      const uint32_t keep = left < 8 ? (1u << left) - 1 : 0xFF;
      if (bad & keep) return at + __builtin_ctz(bad & keep);
      const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(std::min(left, 8)), lanes);
      const __m256i hint =
          _mm256_and_si256(_mm256_i32gather_epi32(reinterpret_cast<const int*>(job.hint), ids, 4), kept);
      every = _mm256_or_si256(every, hint);
      const __m256i sizes = _mm256_and_si256(hint, _mm256_set1_epi32(static_cast<int>(kHintBytes)));
      bytes = _mm256_add_epi32(running_sum8(sizes), bytes);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(masks.ends.data() + at), bytes);
      bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_set1_epi32(7));
      flags.first |= bits8(hint, kHintFirst) << (at - base);
      flags.inner |= bits8(hint, kHintInner) << (at - base);
      flags.word |= bits8(hint, kHintWord) << (at - base);
      flags.literal |= bits8(hint, kHintLiteral) << (at - base);
    }
    flags.store(masks, base, &before);
  }
  masks.ascii = bits8(every, kHintHigh) == 0;
  return -1;
}

// Rows are read once, in order: the ids of the next ones are asked for ahead of time.
inline void prefetch(const ScanJob& job, int32_t at) {
  constexpr int64_t kAhead = 2048;
  const auto* from = static_cast<const uint8_t*>(job.ids) + at * (job.wide ? 8 : 4) + kAhead;
  __builtin_prefetch(from);
  if (job.wide) __builtin_prefetch(from + 64);
}

// Sixteen ids, zeros where `keep` has no bit; `bad` gets a bit for each that is outside the vocabulary.
VSTAR_AVX512 __m512i load16(const ScanJob& job, int32_t at, __mmask16 keep, __mmask16* bad) {
  if (!job.wide) {
    const __m512i ids = _mm512_maskz_loadu_epi32(keep, static_cast<const int32_t*>(job.ids) + at);
    *bad = _mm512_cmpge_epu32_mask(ids, _mm512_set1_epi32(job.vocabulary));
    return ids;
  }
  const auto* from = static_cast<const int64_t*>(job.ids) + at;
  const __m512i low = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(keep), from);
  const __m512i high = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(keep >> 8), from + 8);
  const __m512i vocabulary = _mm512_set1_epi64(job.vocabulary);
  *bad = static_cast<__mmask16>(_mm512_cmpge_epu64_mask(low, vocabulary) |
                                _mm512_cmpge_epu64_mask(high, vocabulary) << 8);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low)), _mm512_cvtepi64_epi32(high),
                            1);
}

VSTAR_AVX512 __m512i running_sum16(__m512i x) {
  const __m512i zero = _mm512_setzero_si512();
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 15));
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 14));
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 12));
  return _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 8));
}

VSTAR_AVX512 uint64_t bits16(__m512i hint, uint32_t flag) {
  return _mm512_test_epi32_mask(hint, _mm512_set1_epi32(static_cast<int>(flag)));
}

VSTAR_AVX512 int32_t avx512(const ScanJob& job, TokenMasks& masks) {
  __m512i every = _mm512_setzero_si512(), bytes = _mm512_setzero_si512();
  uint64_t before = 0;
  for (int32_t base = 0; base < job.count; base += 64) {
    Flags flags;
    for (int32_t at = base; at < std::min(base + 64, job.count); at += 16) {
      const int32_t left = job.count - at;
      prefetch(job, at);
      const auto keep = static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xFFFF);
      __mmask16 bad;
      const __m512i ids = load16(job, at, keep, &bad);
      if (bad) return at + __builtin_ctz(bad);
      const __m512i hint = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), keep, ids, job.hint, 4);
      every = _mm512_or_si512(every, hint);
      const __m512i sizes = _mm512_and_si512(hint, _mm512_set1_epi32(static_cast<int>(kHintBytes)));
      bytes = _mm512_add_epi32(running_sum16(sizes), bytes);
      _mm512_storeu_si512(masks.ends.data() + at, bytes);
      bytes = _mm512_permutexvar_epi32(_mm512_set1_epi32(15), bytes);
      flags.first |= bits16(hint, kHintFirst) << (at - base);
      flags.inner |= bits16(hint, kHintInner) << (at - base);
      flags.word |= bits16(hint, kHintWord) << (at - base);
      flags.literal |= bits16(hint, kHintLiteral) << (at - base);
    }
    flags.store(masks, base, &before);
  }
  masks.ascii = bits16(every, kHintHigh) == 0;
  return -1;
}
#endif

struct Form {
  const char* name;
  TokenScan function;
};

// What this CPU runs, slowest first.
std::vector<Form> forms() {
  std::vector<Form> found{{"portable", portable}};
#ifdef VSTAR_X86
  if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", avx2});
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back({"avx512", avx512});
#endif
  return found;
}

}  // namespace

TokenScan token_scan() {
  static const TokenScan best = forms().back().function;
  return best;
}

TokenScan token_scan(const std::string& name) {
  for (const Form& form : forms())
    if (form.name == name) return form.function;
  throw std::invalid_argument("this CPU has no token scan named " + name);
}

std::vector<std::string> token_scan_names() {
  std::vector<std::string> names;
  for (const Form& form : forms()) names.emplace_back(form.name);
  return names;
}

}  // namespace vstar
