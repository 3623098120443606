// The stores of constrain_simd.h in plain C++, AVX2 and AVX-512. Whole vectors go past the caches: a row of
// logits is read next by another pass over a larger array, if at all.
#include "constrain_simd.h"

#include <algorithm>
#include <atomic>

#if defined(__x86_64__) && defined(__GNUC__)
#define VSTAR_X86 1
#include <immintrin.h>
#endif

namespace vstar {
namespace {

template <class T>
void fill_plain(T* x, int64_t n, T value) {
  std::fill_n(x, n, value);
}

template <class T>
void keep_plain(T* x, int64_t n, T value, const uint32_t* bits) {
  for (int64_t i = 0; i < n; ++i)
    if (!(bits[i >> 5] >> (i & 31) & 1)) x[i] = value;
}

constexpr MaskKernels kPlain{"plain", fill_plain<uint16_t>, fill_plain<uint32_t>, keep_plain<uint16_t>,
                             keep_plain<uint32_t>};

#ifdef VSTAR_X86

template <class T>
int64_t until_aligned(const T* x, int64_t n, int64_t bytes) {
  const auto behind = static_cast<int64_t>(reinterpret_cast<uintptr_t>(x) % static_cast<uintptr_t>(bytes));
  return behind == 0 ? 0 : std::min<int64_t>(n, (bytes - behind) / static_cast<int64_t>(sizeof(T)));
}

template <class T>
__attribute__((target("avx2"))) void fill_avx2(T* x, int64_t n, T value) {
  const __m256i wide = sizeof(T) == 2 ? _mm256_set1_epi16(static_cast<int16_t>(value))
                                      : _mm256_set1_epi32(static_cast<int32_t>(value));
  constexpr int64_t lanes = 32 / sizeof(T);
  int64_t i = until_aligned(x, n, 32);
  std::fill_n(x, i, value);
  for (; i + lanes <= n; i += lanes) _mm256_stream_si256(reinterpret_cast<__m256i*>(x + i), wide);
  std::fill_n(x + i, n - i, value);
  _mm_sfence();
}

__attribute__((target("avx2"))) void keep32_avx2(uint32_t* x, int64_t n, uint32_t value,
                                                 const uint32_t* bits) {
  const __m256i wide = _mm256_set1_epi32(static_cast<int32_t>(value));
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const auto byte = static_cast<int32_t>(bits[i >> 5] >> (i & 31) & 0xFF);
    if (byte == 0xFF) continue;
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(byte), lane);
    _mm256_maskstore_epi32(reinterpret_cast<int*>(x + i), _mm256_cmpeq_epi32(set, _mm256_setzero_si256()),
                           wide);
  }
  for (; i < n; ++i)
    if (!(bits[i >> 5] >> (i & 31) & 1)) x[i] = value;
}

__attribute__((target("avx2"))) void keep16_avx2(uint16_t* x, int64_t n, uint16_t value,
                                                 const uint32_t* bits) {
  const __m256i wide = _mm256_set1_epi16(static_cast<int16_t>(value));
  const __m256i lane = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                                         static_cast<int16_t>(0x8000));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const auto half = static_cast<int32_t>(bits[i >> 5] >> (i & 31) & 0xFFFF);
    if (half == 0xFFFF) continue;
    auto* at = reinterpret_cast<__m256i*>(x + i);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(half)), lane);
    const __m256i off = _mm256_cmpeq_epi16(set, _mm256_setzero_si256());
    _mm256_storeu_si256(at, _mm256_blendv_epi8(_mm256_loadu_si256(at), wide, off));
  }
  for (; i < n; ++i)
    if (!(bits[i >> 5] >> (i & 31) & 1)) x[i] = value;
}

template <class T>
__attribute__((target("avx512f,avx512bw"))) void fill_avx512(T* x, int64_t n, T value) {
  const __m512i wide = sizeof(T) == 2 ? _mm512_set1_epi16(static_cast<int16_t>(value))
                                      : _mm512_set1_epi32(static_cast<int32_t>(value));
  constexpr int64_t lanes = 64 / sizeof(T);
  int64_t i = until_aligned(x, n, 64);
  std::fill_n(x, i, value);
  for (; i + lanes <= n; i += lanes) _mm512_stream_si512(reinterpret_cast<__m512i*>(x + i), wide);
  std::fill_n(x + i, n - i, value);
  _mm_sfence();
}

__attribute__((target("avx512f,avx512bw"))) void keep32_avx512(uint32_t* x, int64_t n, uint32_t value,
                                                               const uint32_t* bits) {
  const __m512i wide = _mm512_set1_epi32(static_cast<int32_t>(value));
  for (int64_t i = 0; i < n; i += 16) {
    auto off = static_cast<__mmask16>(~(bits[i >> 5] >> (i & 31)));
    if (n - i < 16) off &= static_cast<__mmask16>((1u << (n - i)) - 1);
    if (off) _mm512_mask_storeu_epi32(x + i, off, wide);
  }
}

__attribute__((target("avx512f,avx512bw"))) void keep16_avx512(uint16_t* x, int64_t n, uint16_t value,
                                                               const uint32_t* bits) {
  const __m512i wide = _mm512_set1_epi16(static_cast<int16_t>(value));
  for (int64_t i = 0; i < n; i += 32) {
    __mmask32 off = ~bits[i >> 5];
    if (n - i < 32) off &= (1u << (n - i)) - 1;
    if (off) _mm512_mask_storeu_epi16(x + i, off, wide);
  }
}

constexpr MaskKernels kAvx2{"avx2", fill_avx2<uint16_t>, fill_avx2<uint32_t>, keep16_avx2, keep32_avx2};
constexpr MaskKernels kAvx512{"avx512", fill_avx512<uint16_t>, fill_avx512<uint32_t>, keep16_avx512,
                              keep32_avx512};

int best_level() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return 2;
  return __builtin_cpu_supports("avx2") ? 1 : 0;
}

#else

int best_level() { return 0; }

#endif

const MaskKernels& kernels_of(int level) {
#ifdef VSTAR_X86
  if (level == 2) return kAvx512;
  if (level == 1) return kAvx2;
#endif
  (void)level;
  return kPlain;
}

std::atomic<int> active{-1};

}  // namespace

const MaskKernels& mask_kernels() {
  static const int best = best_level();
  const int limit = active.load(std::memory_order_relaxed);
  return kernels_of(limit < 0 ? best : std::min(limit, best));
}

const MaskKernels& limit_mask_kernels(int level) {
  active.store(level);
  return mask_kernels();
}

}  // namespace vstar
