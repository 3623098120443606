// Stores of -inf over logits, by the widest vectors this processor has. Bits say which logits stay.
#pragma once

#include <cstdint>

namespace vstar {

struct MaskKernels {
  const char* name;
  void (*fill16)(uint16_t* x, int64_t n, uint16_t value);
  void (*fill32)(uint32_t* x, int64_t n, uint32_t value);
  // x[32 i + b] = value where bit b of bits[i] is 0; n elements.
  void (*keep16)(uint16_t* x, int64_t n, uint16_t value, const uint32_t* bits);
  void (*keep32)(uint32_t* x, int64_t n, uint32_t value, const uint32_t* bits);
};

// The widest there is, or what limit_mask_kernels left: 0 plain, 1 AVX2, 2 AVX-512, -1 no limit.
const MaskKernels& mask_kernels();
const MaskKernels& limit_mask_kernels(int level);

}  // namespace vstar
