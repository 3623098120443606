// Python bindings of match_number, match_interval and match_sequence; see label_bindings.cpp.
#include <pybind11/stl.h>

#include "label_bindings.h"
#include "value_match.h"

namespace py = pybind11;

namespace vstar {
namespace {

// Pointers (gold, absolute, relative, units, offsets, out, values, score, labels, items, common), rows, pick,
// kind, most
using ValueArguments = std::tuple<std::vector<uintptr_t>, int32_t, int32_t, int32_t, int32_t>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ValueJob value_job(const ValueArguments& from) {
  const auto& [p, rows, pick, kind, most] = from;
  return {at<const double>(p.at(0)),
          at<const double>(p.at(1)),
          at<const double>(p.at(2)),
          at<const int32_t>(p.at(3)),
          at<const int64_t>(p.at(4)),
          at<int32_t>(p.at(5)),
          at<double>(p.at(6)),
          at<double>(p.at(7)),
          at<const int32_t>(p.at(8)),
          at<int32_t>(p.at(9)),
          at<int32_t>(p.at(10)),
          rows,
          pick,
          kind,
          most};
}

}  // namespace

void bind_value_match(py::module_& m) {
  m.def("find_unit", &find_unit);
  m.def("match_values_texts_cpu",
        [](uintptr_t tables, const py::sequence& texts, const ValueArguments& arguments, int threads) {
          const PyTexts rows(texts);
          py::gil_scoped_release release;
          match_values_cpu(label_tables(tables, tables), rows.views, value_job(arguments), threads);
        });
  m.def("match_values_cpu", [](uintptr_t tables, uintptr_t text, uintptr_t offsets,
                               const ValueArguments& arguments, int threads) {
    const ValueJob job = value_job(arguments);
    py::gil_scoped_release release;
    match_values_cpu(label_tables(tables, tables), row_views(text, offsets, job.rows), job, threads);
  });
  m.def("match_values_ids_cpu", [](uintptr_t tables, uintptr_t tokens, const IdArguments& ids,
                                   const ValueArguments& arguments, int threads) {
    py::gil_scoped_release release;
    match_values_ids_cpu(label_tables(tables, tables), token_table(tokens, tokens), id_rows(ids),
                         value_job(arguments), threads);
  });
#ifdef VSTAR_WITH_CUDA
  m.def("match_values_cuda", [](uintptr_t host_tables, uintptr_t tables, uintptr_t text, uintptr_t offsets,
                                const ValueArguments& arguments, uintptr_t stream) {
    match_values_cuda(label_tables(host_tables, tables),
                      {at<const uint8_t>(text), at<const int64_t>(offsets)}, value_job(arguments), stream);
  });
  m.def("match_values_ids_cuda", [](uintptr_t host_tables, uintptr_t tables, uintptr_t host_tokens,
                                    uintptr_t tokens, const IdArguments& ids, const ValueArguments& arguments,
                                    uintptr_t scratch, int64_t scratch_bytes, int32_t workers,
                                    uintptr_t stream) {
    match_values_ids_cuda(label_tables(host_tables, tables), token_table(host_tokens, tokens), id_rows(ids),
                          value_job(arguments), at<uint8_t>(scratch), scratch_bytes, workers, stream);
  });
#endif
}

}  // namespace vstar
