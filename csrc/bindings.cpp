// Python bindings of the module vstar_fast._C: one m.def per op.
// Pointers and streams come as integers; the Python wrappers have checked device, dtype, sizes and
// contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "label_bindings.h"
#include "sample.h"

namespace py = pybind11;

namespace vstar {

void bind_constrain(py::module_& m);  // constrain_bindings.cpp

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_sample(py::module_& m) {
  m.def("sample_cpu", [](uintptr_t logits, uintptr_t allowed, uintptr_t seeds, uintptr_t ids,
                         uintptr_t logprobs, int32_t rows, int32_t columns, int64_t logits_stride,
                         int64_t allowed_stride, uint64_t step, float scale, int threads) {
    const SampleRows view{pointer<const float>(logits),
                          pointer<const float>(allowed),
                          pointer<const int64_t>(seeds),
                          pointer<int64_t>(ids),
                          pointer<float>(logprobs),
                          rows,
                          columns,
                          logits_stride,
                          allowed_stride};
    py::gil_scoped_release release;
    sample_cpu(view, step, scale, threads);
  });
}

}  // namespace
}  // namespace vstar

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ and CUDA kernels of vstar-fast; call them through vstar_fast.ops.";
#ifdef VSTAR_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  vstar::bind_constrain(m);
  vstar::bind_label_match(m);
  vstar::bind_value_match(m);
  vstar::bind_sample(m);
}
