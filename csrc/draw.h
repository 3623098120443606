// The integers a token is drawn with, the same on every backend: kernels/sample/reference.py specifies them.
// Files that include this are built without fused multiply-adds, which would round differently.
#pragma once

#include <cstdint>
#include <cstring>

#include "checks.h"

namespace vstar {

// 2^-f for f in [0, 1), lowest power first.
#define VSTAR_EXP2                                                     \
  {0.9999999403953552f,   -0.6931421756744385f,  0.24017158150672913f, \
   -0.05527813360095024f, 0.009186874143779278f, -0.0009381164563819766f}
constexpr int kWeightLift = 40 - 24;

VSTAR_HD uint64_t mix_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// 62 random bits of a row's stream at a step.
VSTAR_HD uint64_t stream_bits(int64_t seed, uint64_t step) {
  const uint64_t golden = 0x9E3779B97F4A7C15u;
  return mix_bits(mix_bits(static_cast<uint64_t>(seed) + golden) + (step + 1) * golden) >> 2;
}

// floor(bits * total / 2^62), and whether something was left over.
struct Scaled {
  int64_t whole;
  bool rest;
};

VSTAR_HD Scaled scale_bits(uint64_t bits, int64_t total) {
#ifdef __CUDA_ARCH__
  const uint64_t high = __umul64hi(bits, static_cast<uint64_t>(total)),
                 low = bits * static_cast<uint64_t>(total);
#else
  const unsigned __int128 product = static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(total);
  const auto high = static_cast<uint64_t>(product >> 64), low = static_cast<uint64_t>(product);
#endif
  return {static_cast<int64_t>(high << 2 | low >> 62), low << 2 != 0};
}

VSTAR_HD int64_t scale_down(uint64_t bits, int64_t total) { return scale_bits(bits, total).whole; }

VSTAR_HD float times_plus(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

VSTAR_HD float power_of_rest(float rest) {
  constexpr float exp2[] = VSTAR_EXP2;
  float power = times_plus(rest, exp2[5], exp2[4]);
  power = times_plus(power, rest, exp2[3]);
  power = times_plus(power, rest, exp2[2]);
  power = times_plus(power, rest, exp2[1]);
  return times_plus(power, rest, exp2[0]);
}

// Weight of a logit below the maximum `top`, in units of 2^-40; `scale` is log2(e) / temperature.
VSTAR_HD int64_t draw_weight(float x, float top, float scale) {
  float depth = (top - x) * scale;
  depth = depth < 63.0f ? depth : 63.0f;
  const auto whole = static_cast<int32_t>(depth);
  const float power = power_of_rest(depth - static_cast<float>(whole));
  const auto fraction = static_cast<int32_t>(power * 16777216.0f);
  return static_cast<int64_t>((static_cast<uint64_t>(fraction) << kWeightLift) >>
                              static_cast<uint64_t>(whole));
}

VSTAR_HD float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

VSTAR_HD float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7FFF;
  if (rest >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  if (rest >= 0x0400) return float_of_bits(sign | ((rest << 13) + 0x38000000));
  const float tiny = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -tiny : tiny;
}

VSTAR_HD float float_of_bfloat(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

}  // namespace vstar
