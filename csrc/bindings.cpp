// Python bindings of the module vstar_fast._C: one m.def per op.
// Pointers and streams come as integers; the Python wrappers have checked device, dtype, sizes and
// contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "label_match.h"
#include "sample.h"

namespace py = pybind11;

namespace vstar {

void bind_constrain(py::module_& m);  // constrain_bindings.cpp

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

LabelRows label_rows(uintptr_t text, uintptr_t offsets, uintptr_t own, int32_t rows, uintptr_t out,
                     uintptr_t which, int32_t which_words) {
  return {pointer<const uint8_t>(text),
          pointer<const int64_t>(offsets),
          pointer<const int32_t>(own),
          rows,
          pointer<int32_t>(out),
          pointer<uint32_t>(which),
          which_words};
}

// `host` is the compiled block in host memory, `device` the same block where the rows are.
LabelTables label_tables(uintptr_t host, uintptr_t device) {
  const auto* header = pointer<const LabelHeader>(host);
  if (header->magic != kLabelMagic) throw std::invalid_argument("not a compiled label set");
  return {*header, pointer<const uint8_t>(device)};
}

void bind_label_match(py::module_& m) {
  m.def("compile_labels",
        [](const std::vector<std::vector<int32_t>>& forms, const std::vector<int32_t>& owners,
           const std::vector<int32_t>& after) { return py::bytes(compile_labels(forms, owners, after)); });
  m.def("label_match_cpu",
        [](uintptr_t tables, uintptr_t text, uintptr_t offsets, uintptr_t own, int32_t rows, uintptr_t out,
           uintptr_t which, int32_t which_words, int threads) {
          const LabelRows view = label_rows(text, offsets, own, rows, out, which, which_words);
          py::gil_scoped_release release;
          label_match_cpu(label_tables(tables, tables), view, threads);
        });
#ifdef VSTAR_WITH_CUDA
  m.def("label_match_cuda",
        [](uintptr_t host_tables, uintptr_t tables, uintptr_t text, uintptr_t offsets, uintptr_t own,
           int32_t rows, uintptr_t out, uintptr_t which, int32_t which_words, uintptr_t stream) {
          const LabelRows view = label_rows(text, offsets, own, rows, out, which, which_words);
          label_match_cuda(label_tables(host_tables, tables), view, stream);
        });
#endif
  m.def("char_kind", &char_kind);
  m.def("char_fold", &char_fold);
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
  vstar::bind_sample(m);
}
