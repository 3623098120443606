// Marks for code that is compiled for both CPU and GPU, and the check of a CUDA call.
// Device, dtype and contiguity of tensors are checked in Python, where the names of the arguments are known.
#pragma once

#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#define VSTAR_HD __host__ __device__ __forceinline__
#define VSTAR_HD_CALL \
  __host__ __device__ __noinline__ inline  // long and seldom: inlined, they take minutes to compile

namespace vstar {
inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
}  // namespace vstar
#else
#define VSTAR_HD inline
#define VSTAR_HD_CALL inline
#endif
