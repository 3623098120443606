// The three forms of word_masks: eight bytes at a time in plain C++, 32 with AVX2, 64 with AVX-512.
#include "word_masks.h"

#include <cstring>
#include <stdexcept>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VSTAR_X86 1
#include <immintrin.h>
#endif

namespace vstar {
namespace {

constexpr int32_t kBlock = 64;

// Eight bytes at once: bit 7 of each byte says that it is not ASCII, or that it is a letter or a digit.
struct EightBytes {
  static constexpr uint64_t kTop = 0x8080808080808080ull, kOnes = 0x0101010101010101ull;
  uint64_t bytes;

  uint64_t high() const { return bytes & kTop; }
  // Of the low seven bits of each byte: at least `low`, at most `top`.
  static uint64_t between(uint64_t seven, uint64_t low, uint64_t top) {
    return (seven + (0x80 - low) * kOnes) & ~(seven + (0x7F - top) * kOnes) & kTop;
  }
  uint64_t word() const {
    const uint64_t seven = bytes & ~kTop;
    return (between(seven | 0x20 * kOnes, 'a', 'z') | between(seven, '0', '9')) & ~bytes & kTop;
  }
  // Bit 7 of byte i as bit i.
  static uint64_t gather(uint64_t tops) { return (tops >> 7) * 0x0102040810204080ull >> 56; }
};

void portable(const uint8_t* text, int32_t size, uint64_t* word, uint64_t* high) {
  for (int32_t base = 0; base < size; base += kBlock) {
    uint64_t words = 0, highs = 0;
    for (int32_t at = base; at < base + kBlock && at < size; at += 8) {
      EightBytes eight{0};
      std::memcpy(&eight.bytes, text + at, at + 8 <= size ? 8 : size - at);
      words |= EightBytes::gather(eight.word()) << (at - base);
      highs |= EightBytes::gather(eight.high()) << (at - base);
    }
    *word++ = words;
    *high++ = highs;
  }
}

#ifdef VSTAR_X86
__attribute__((target("avx2"))) uint32_t avx2_word(__m256i bytes) {
  const __m256i lower = _mm256_or_si256(bytes, _mm256_set1_epi8(0x20));
  const __m256i letter = _mm256_and_si256(_mm256_cmpgt_epi8(lower, _mm256_set1_epi8('a' - 1)),
                                          _mm256_cmpgt_epi8(_mm256_set1_epi8('z' + 1), lower));
  const __m256i digit = _mm256_and_si256(_mm256_cmpgt_epi8(bytes, _mm256_set1_epi8('0' - 1)),
                                         _mm256_cmpgt_epi8(_mm256_set1_epi8('9' + 1), bytes));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(letter, digit)));
}

__attribute__((target("avx2"))) void avx2(const uint8_t* text, int32_t size, uint64_t* word, uint64_t* high) {
  for (int32_t base = 0; base < size; base += kBlock) {
    uint8_t rest[kBlock];
    const uint8_t* from = text + base;
    if (size - base < kBlock) {
      std::memset(rest, 0, kBlock);
      std::memcpy(rest, from, size - base);
      from = rest;
    }
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i top = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    *word++ = avx2_word(low) | static_cast<uint64_t>(avx2_word(top)) << 32;
    *high++ = static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
              static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(top))) << 32;
  }
}

__attribute__((target("avx512f,avx512bw"))) void avx512(const uint8_t* text, int32_t size, uint64_t* word,
                                                        uint64_t* high) {
  for (int32_t base = 0; base < size; base += kBlock) {
    const int32_t left = size - base;
    const __m512i bytes = _mm512_maskz_loadu_epi8(left >= kBlock ? ~0ull : (1ull << left) - 1, text + base);
    const __m512i letter =
        _mm512_sub_epi8(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), _mm512_set1_epi8('a'));
    const __m512i digit = _mm512_sub_epi8(bytes, _mm512_set1_epi8('0'));
    *word++ = _mm512_cmplt_epu8_mask(letter, _mm512_set1_epi8(26)) |
              _mm512_cmplt_epu8_mask(digit, _mm512_set1_epi8(10));
    *high++ = _mm512_movepi8_mask(bytes);
  }
}
#endif

struct Form {
  const char* name;
  WordMasks function;
};

// What this CPU runs, slowest first.
std::vector<Form> forms() {
  std::vector<Form> found{{"portable", portable}};
#ifdef VSTAR_X86
  if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", avx2});
  if (__builtin_cpu_supports("avx512bw")) found.push_back({"avx512", avx512});
#endif
  return found;
}

}  // namespace

WordMasks word_masks() {
  static const WordMasks best = forms().back().function;
  return best;
}

WordMasks word_masks(const std::string& name) {
  for (const Form& form : forms())
    if (form.name == name) return form.function;
  throw std::invalid_argument("this CPU has no word masks named " + name);
}

std::vector<std::string> word_mask_names() {
  std::vector<std::string> names;
  for (const Form& form : forms()) names.emplace_back(form.name);
  return names;
}

}  // namespace vstar
