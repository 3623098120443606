// Python bindings of the module vstar_fast._C: one m.def per op.
// Pointers and streams come as integers; the Python wrappers have checked device, dtype, sizes and
// contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "label_bindings.h"
#include "prefix_attention.h"
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

// (keys, values, their strides, tokens, slots, visible, mask, groups, members, positions, members of visible
// and of mask, causal)
using SegmentArguments = std::tuple<uintptr_t, uintptr_t, std::array<int64_t, 6>, uintptr_t, uintptr_t,
                                    uintptr_t, uintptr_t, std::array<int32_t, 5>, bool>;

AttentionSegment segment(const SegmentArguments& from) {
  const auto& [keys, values, by, tokens, slots, visible, mask, sizes, causal] = from;
  return {pointer<const float>(keys),
          pointer<const float>(values),
          by[0],
          by[1],
          by[2],
          by[3],
          by[4],
          by[5],
          pointer<const int64_t>(tokens),
          pointer<const int64_t>(slots),
          pointer<const int64_t>(visible),
          pointer<const uint8_t>(mask),
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          causal};
}

void bind_prefix_attention(py::module_& m) {
  m.attr("attention_simd") = attention_simd();
  m.def("prefix_attention_cpu", [](uintptr_t query, uintptr_t out, uintptr_t lse, uintptr_t sums,
                                   std::array<int64_t, 2> strides, std::array<int32_t, 5> sizes, float scale,
                                   const std::vector<std::vector<SegmentArguments>>& levels, int threads) {
    std::vector<AttentionSegment> segments;
    std::vector<int32_t> ends;
    for (const auto& level : levels) {
      for (const auto& each : level) segments.push_back(segment(each));
      ends.push_back(static_cast<int32_t>(segments.size()));
    }
    const AttentionRows rows{pointer<const float>(query),
                             strides[0],
                             strides[1],
                             pointer<float>(out),
                             pointer<float>(lse),
                             pointer<float>(sums),
                             sizes[0],
                             sizes[1],
                             sizes[2],
                             sizes[3],
                             sizes[4],
                             scale};
    py::gil_scoped_release release;
    prefix_attention_cpu(rows, segments.data(), ends.data(), static_cast<int32_t>(ends.size()), threads);
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
  vstar::bind_prefix_attention(m);
}
