// What the bindings of the ops over label sets and token ids share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>
#include <tuple>
#include <vector>

#include "label_match.h"
#include "token_bytes.h"

namespace vstar {

// (ids, offsets, lengths, stride, columns, whether ids are int64)
using IdArguments = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int32_t, bool>;

// Texts of a Python sequence as UTF-8, kept alive by `kept`. A string that is ASCII is not copied.
struct PyTexts {
  std::vector<pybind11::object> kept;
  std::vector<std::string_view> views;

  explicit PyTexts(const pybind11::sequence& items);
};

// Rows of UTF-8 text: row r is text[offsets[r] .. offsets[r + 1]).
std::vector<std::string_view> row_views(uintptr_t text, uintptr_t offsets, int32_t rows);

// `host` is the compiled block in host memory, `device` the same block where the rows are.
LabelTables label_tables(uintptr_t host, uintptr_t device);
TokenTable token_table(uintptr_t host, uintptr_t device);
IdRows id_rows(const IdArguments& from);

void bind_label_match(pybind11::module_& m);
void bind_value_match(pybind11::module_& m);

}  // namespace vstar
