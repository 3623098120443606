// Python bindings of match_number and match_interval; see label_bindings.cpp.
#include <pybind11/stl.h>

#include "label_bindings.h"
#include "value_match.h"

namespace py = pybind11;

namespace vstar {
namespace {

// Pointers (gold, absolute, relative, units, offsets, out, values, score), rows, pick, interval
using ValueArguments = std::tuple<std::vector<uintptr_t>, int32_t, int32_t, bool>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ValueJob value_job(const ValueArguments& from) {
  const auto& [p, rows, pick, interval] = from;
  return {at<const double>(p.at(0)),
          at<const double>(p.at(1)),
          at<const double>(p.at(2)),
          at<const int32_t>(p.at(3)),
          at<const int64_t>(p.at(4)),
          at<int32_t>(p.at(5)),
          at<double>(p.at(6)),
          at<double>(p.at(7)),
          rows,
          pick};
}

}  // namespace

void bind_value_match(py::module_& m) {
  m.def("find_unit", &find_unit);
  m.def("match_values_cpu",
        [](uintptr_t tables, const std::vector<std::string_view>& texts, const ValueArguments& arguments) {
          const ValueJob job = value_job(arguments);
          py::gil_scoped_release release;
          match_values_cpu(label_tables(tables, tables), texts, job, std::get<3>(arguments));
        });
  m.def("match_values_ids_cpu", [](uintptr_t tables, uintptr_t tokens, const IdArguments& ids,
                                   const ValueArguments& arguments) {
    const ValueJob job = value_job(arguments);
    const TokenTable table = token_table(tokens, tokens);
    const IdRows rows = id_rows(ids);
    py::gil_scoped_release release;
    std::vector<std::string> spelt(job.rows);
    for (int32_t r = 0; r < job.rows; ++r)
      for (int32_t i = 0; i < rows.length(r); ++i) {
        const int64_t id = rows.id(rows.begin(r) + i);
        if (id < 0 || id >= table.count) return std::make_pair(r, i);
        const TokenPiece piece = token_piece(table, id);
        spelt[r].append(reinterpret_cast<const char*>(piece.bytes), piece.size);
      }
    match_values_cpu(label_tables(tables, tables), {spelt.begin(), spelt.end()}, job, std::get<3>(arguments));
    return std::make_pair(-1, -1);
  });
#ifdef VSTAR_WITH_CUDA
  m.def("match_values_cuda", [](uintptr_t host_tables, uintptr_t tables, uintptr_t text, uintptr_t offsets,
                                const ValueArguments& arguments, uintptr_t stream) {
    match_values_cuda(label_tables(host_tables, tables),
                      {at<const uint8_t>(text), at<const int64_t>(offsets)}, value_job(arguments),
                      std::get<3>(arguments), stream);
  });
#endif
}

}  // namespace vstar
