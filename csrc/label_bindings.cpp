// Python bindings of label_match. Pointers and streams come as integers; the Python wrappers have checked
// device, dtype, sizes and contiguity.
#include "label_bindings.h"

#include <pybind11/stl.h>

#include "label_rows.h"
#include "token_scan.h"
#include "word_masks.h"

namespace py = pybind11;

namespace vstar {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (own, out, which, rows, which words, negation)
using OutArguments = std::tuple<uintptr_t, uintptr_t, uintptr_t, int32_t, int32_t, bool>;

LabelOut label_out(const OutArguments& from) {
  const auto& [own, out, which, rows, words, negation] = from;
  return {
      pointer<const int32_t>(own), pointer<int32_t>(out), pointer<uint32_t>(which), rows, words, negation};
}

std::string_view utf8_view(py::object& item) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyUnicode_Check(item.ptr())) {
    const char* text = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
    if (text) return {text, static_cast<size_t>(size)};
    PyErr_Clear();  // a lone surrogate: its bytes belong to no label
    item = py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(item.ptr(), "utf-8", "surrogatepass"));
    if (!item) throw py::error_already_set();
  }
  if (!PyBytes_Check(item.ptr())) throw py::value_error("a text is neither a string nor bytes");
  if (PyBytes_AsStringAndSize(item.ptr(), &data, &size) != 0) throw py::error_already_set();
  return {data, static_cast<size_t>(size)};
}

// `hints`: [2, count], see compile_hints; 0 for none.
TokenHints token_hints(uintptr_t hints, const TokenTable& tokens) {
  if (hints == 0) return {nullptr, nullptr};
  return {pointer<const uint32_t>(hints), pointer<const int32_t>(hints) + tokens.count};
}

std::string tokens_of(const py::sequence& pieces) {
  std::vector<std::string_view> views;
  for (const auto& piece : pieces)
    views.push_back(piece.is_none() ? std::string_view() : piece.cast<std::string_view>());
  return compile_tokens(views);
}

}  // namespace

PyTexts::PyTexts(const py::sequence& items) {
  const size_t count = items.size();
  views.reserve(count);
  kept.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    kept.push_back(items[i]);
    views.push_back(utf8_view(kept.back()));
    if (views.back().size() >= INT32_MAX) throw py::value_error("a row is longer than 2 GiB; split it");
  }
}

LabelTables label_tables(uintptr_t host, uintptr_t device) {
  const auto* header = pointer<const LabelHeader>(host);
  if (header->magic != kLabelMagic) throw std::invalid_argument("not a compiled label set");
  return {*header, pointer<const uint8_t>(device)};
}

TokenTable token_table(uintptr_t host, uintptr_t device) {
  if (host == 0) return {};
  const auto* header = pointer<const TokenHeader>(host);
  if (header->magic != kTokenMagic) throw std::invalid_argument("not a compiled token table");
  return {*header, pointer<const uint8_t>(device)};
}

std::vector<std::string_view> row_views(uintptr_t text, uintptr_t offsets, int32_t rows) {
  const auto* bounds = pointer<const int64_t>(offsets);
  std::vector<std::string_view> views;
  for (int32_t r = 0; r < rows; ++r)
    views.emplace_back(pointer<const char>(text) + bounds[r], static_cast<size_t>(bounds[r + 1] - bounds[r]));
  return views;
}

IdRows id_rows(const IdArguments& from) {
  const auto& [ids, offsets, lengths, stride, columns, wide] = from;
  return {pointer<const void>(ids),
          pointer<const int64_t>(offsets),
          pointer<const int64_t>(lengths),
          stride,
          columns,
          wide};
}

void bind_label_match(py::module_& m) {
  m.def("compile_labels",
        [](const std::vector<std::u32string>& forms, const std::vector<int32_t>& owners,
           const std::u32string& after) { return py::bytes(compile_labels(forms, owners, after)); });
  m.def("compile_tokens", [](const py::sequence& pieces) { return py::bytes(tokens_of(pieces)); });
  m.def("label_match_texts_cpu",
        [](uintptr_t tables, const py::sequence& texts, const OutArguments& out, int threads) {
          const PyTexts rows(texts);
          py::gil_scoped_release release;
          label_match_cpu(label_tables(tables, tables), rows.views, label_out(out), threads);
        });
  m.def("label_match_cpu",
        [](uintptr_t tables, uintptr_t text, uintptr_t offsets, const OutArguments& out, int threads) {
          const LabelOut job = label_out(out);
          py::gil_scoped_release release;
          label_match_cpu(label_tables(tables, tables), row_views(text, offsets, job.rows), job, threads);
        });
  m.def("label_match_ids_cpu", [](uintptr_t tables, uintptr_t tokens, uintptr_t hints, const IdArguments& ids,
                                  const OutArguments& out, int threads) {
    const LabelOut job = label_out(out);
    const TokenTable table = token_table(tokens, tokens);
    py::gil_scoped_release release;
    label_match_ids_cpu(label_tables(tables, tables), table, token_hints(hints, table), id_rows(ids), job,
                        threads);
    for (int32_t r = 0; r < job.rows; ++r)  // the first row with an id outside the vocabulary, or -1
      if (job.out[static_cast<int64_t>(r) * kRowInts + kBadToken] >= 0) return r;
    return -1;
  });
  m.def("compile_hints", [](uintptr_t tables, uintptr_t tokens, uintptr_t out) {
    const TokenTable table = token_table(tokens, tokens);
    py::gil_scoped_release release;
    compile_hints(label_tables(tables, tables), table, pointer<uint32_t>(out),
                  pointer<int32_t>(out) + table.count);
  });
#ifdef VSTAR_WITH_CUDA
  m.def("label_match_cuda", [](uintptr_t host_tables, uintptr_t tables, uintptr_t text, uintptr_t offsets,
                               const OutArguments& out, uintptr_t stream) {
    const TextRows texts{pointer<const uint8_t>(text), pointer<const int64_t>(offsets)};
    label_match_cuda(label_tables(host_tables, tables), texts, label_out(out), stream);
  });
  m.def("label_match_ids_cuda",
        [](uintptr_t host_tables, uintptr_t tables, uintptr_t host_tokens, uintptr_t tokens, uintptr_t hints,
           const IdArguments& ids, const OutArguments& out, uintptr_t stream) {
          const TokenTable table = token_table(host_tokens, tokens);
          label_match_ids_cuda(label_tables(host_tables, tables), table, token_hints(hints, table),
                               id_rows(ids), label_out(out), stream);
        });
#endif
  m.def("char_kind", &char_kind);
  m.def("char_fold", &char_fold);
  m.def("word_mask_names", &word_mask_names);
  m.def("word_masks", [](const std::string& name, const std::string& text) {
    std::vector<uint64_t> word((text.size() + 63) / 64), high(word.size());
    word_masks(name)(reinterpret_cast<const uint8_t*>(text.data()), static_cast<int32_t>(text.size()),
                     word.data(), high.data());
    return std::make_pair(word, high);
  });
  m.def("token_scan_names", &token_scan_names);
  // (position of the first id outside the vocabulary or -1, bytes up to each end, bits for labels, for the
  // literal, whether all is ASCII)
  m.def("token_scan", [](const std::string& name, uintptr_t hints, int32_t vocabulary, uintptr_t ids,
                         int32_t count, bool wide) {
    TokenMasks masks;
    masks.fit(count);
    const int32_t bad = token_scan(name)(
        {pointer<const void>(ids), pointer<const uint32_t>(hints), count, vocabulary, wide}, masks);
    masks.ends.resize(static_cast<size_t>(count));
    return std::make_tuple(bad, masks.ends, masks.label, masks.literal, masks.ascii);
  });
}

}  // namespace vstar
