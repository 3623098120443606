// Python bindings of the module vstar_fast._C: one m.def per op.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ and CUDA kernels of vstar-fast; call them through vstar_fast.ops.";
#ifdef VSTAR_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
