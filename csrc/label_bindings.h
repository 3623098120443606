// What the bindings of the ops over label sets and token ids share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "label_match.h"
#include "token_bytes.h"

namespace vstar {

// (ids, offsets, lengths, stride, columns, whether ids are int64)
using IdArguments = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int32_t, bool>;

// `host` is the compiled block in host memory, `device` the same block where the rows are.
LabelTables label_tables(uintptr_t host, uintptr_t device);
TokenTable token_table(uintptr_t host, uintptr_t device);
IdRows id_rows(const IdArguments& from);

void bind_label_match(pybind11::module_& m);
void bind_value_match(pybind11::module_& m);

}  // namespace vstar
