// Bindings of constrain. A grammar is (address of its block in host memory, address of the same block where
// the rows are); rows are (state, remaining, step, count), logits are (data, type, stride).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "constrain.h"
#include "constrain_compile.h"
#include "constrain_simd.h"

namespace py = pybind11;

namespace vstar {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Arena arena(uintptr_t host, uintptr_t device) {
  ArenaHeader header;
  std::memcpy(&header, at<const void>(host), sizeof header);
  if (header.magic != kArenaMagic) throw std::invalid_argument("not a compiled grammar");
  return {header, at<const uint8_t>(device)};
}

RowStates row_states(const std::tuple<uintptr_t, uintptr_t, uintptr_t, int32_t>& rows) {
  const auto& [state, remaining, step, count] = rows;
  return {at<int32_t>(state), at<int32_t>(remaining), at<int32_t>(step), count};
}

LogitsRows logits_rows(const std::tuple<uintptr_t, int32_t, int64_t>& logits) {
  const auto& [data, type, stride] = logits;
  return {at<void>(data), static_cast<LogitsType>(type), stride};
}

DrawRows draw_rows(const std::tuple<uintptr_t, uintptr_t, uintptr_t, float, uint64_t, int32_t>& draw) {
  const auto& [seeds, ids, logprobs, scale, top_p, top_k] = draw;
  return {at<const int64_t>(seeds), at<int64_t>(ids), at<float>(logprobs), scale, top_p, top_k};
}

using Rows = std::tuple<uintptr_t, uintptr_t, uintptr_t, int32_t>;
using Logits = std::tuple<uintptr_t, int32_t, int64_t>;
using Draw = std::tuple<uintptr_t, uintptr_t, uintptr_t, float, uint64_t, int32_t>;

// Texts go to Python as bytes: they may end inside a character.
Encoder encoder(const py::object& encode) {
  if (encode.is_none()) return {};
  return [encode](const std::vector<std::string>& texts) {
    py::list list;
    for (const std::string& text : texts) list.append(py::bytes(text));
    return encode(list).cast<std::vector<std::vector<int32_t>>>();
  };
}

void bind_compile(py::module_& m) {
  m.def("constrain_vocab",
        [](const std::vector<std::string_view>& tokens, const std::vector<int32_t>& eos, int32_t vocabulary) {
          return py::bytes(build_vocab(tokens, eos, vocabulary));
        });
  m.def("constrain_compile", [](uintptr_t vocab, const std::string& program, const py::object& encode) {
    const Vocab tokens(at<const uint8_t>(vocab));
    return py::bytes(compile_program(program, tokens, encoder(encode)));
  });
  m.def("constrain_compile_sequences",
        [](uintptr_t vocab, const std::string& program, const std::vector<std::vector<int32_t>>& sequences) {
          const Vocab tokens(at<const uint8_t>(vocab));
          return py::bytes(compile_sequences(program, sequences, tokens));
        });
  m.def("constrain_check", [](const std::string& block) { check_arena(block); });
  m.def("constrain_join", [](const std::vector<std::string>& blocks) {
    std::vector<int32_t> starts;
    std::string joined = join_arenas(blocks, starts);
    return py::make_tuple(py::bytes(joined), starts);
  });
  m.def("constrain_simd", [](int level) { return limit_mask_kernels(level).name; });
}

void bind_cpu(py::module_& m) {
  m.def("constrain_advance_cpu", [](uintptr_t block, const Rows& rows, uintptr_t tokens) {
    return constrain_advance_cpu(arena(block, block), row_states(rows), at<const int64_t>(tokens));
  });
  m.def("constrain_mask_cpu", [](uintptr_t block, const Rows& rows, const Logits& logits, int threads) {
    py::gil_scoped_release release;
    constrain_mask_cpu(arena(block, block), row_states(rows), logits_rows(logits), threads);
  });
  m.def("constrain_sample_cpu",
        [](uintptr_t block, const Rows& rows, const Logits& logits, const Draw& draw, int threads) {
          py::gil_scoped_release release;
          constrain_sample_cpu(arena(block, block), row_states(rows), logits_rows(logits), draw_rows(draw),
                               threads);
        });
  m.def("constrain_forced_cpu", [](uintptr_t block, const Rows& rows, uintptr_t tokens, uintptr_t lengths,
                                   int32_t most, bool advance) {
    constrain_forced_cpu(arena(block, block), row_states(rows), at<int64_t>(tokens), at<int32_t>(lengths),
                         most, advance);
  });
  m.def("constrain_fill_cpu", [](uintptr_t block, const Rows& rows, uintptr_t out, int64_t stride,
                                 uintptr_t filled) {
    constrain_fill_cpu(arena(block, block), row_states(rows), at<uint32_t>(out), stride, at<int32_t>(filled));
  });
}

#ifdef VSTAR_WITH_CUDA
void bind_cuda(py::module_& m) {
  m.def("constrain_advance_cuda",
        [](uintptr_t host, uintptr_t device, const Rows& rows, uintptr_t tokens, uintptr_t stream) {
          constrain_advance_cuda(arena(host, device), row_states(rows), at<const int64_t>(tokens), stream);
        });
  m.def("constrain_mask_cuda",
        [](uintptr_t host, uintptr_t device, const Rows& rows, const Logits& logits, uintptr_t stream) {
          constrain_mask_cuda(arena(host, device), row_states(rows), logits_rows(logits), stream);
        });
  m.def("constrain_advance_mask_cuda",
        [](uintptr_t host, uintptr_t device, const Rows& rows, uintptr_t tokens, uintptr_t tickets,
           const Logits& logits, uintptr_t stream) {
          constrain_advance_mask_cuda(arena(host, device), row_states(rows), at<const int64_t>(tokens),
                                      at<int32_t>(tickets), logits_rows(logits), stream);
        });
  m.def("constrain_sample_cuda", [](uintptr_t host, uintptr_t device, const Rows& rows, const Logits& logits,
                                    const Draw& draw, uintptr_t stream) {
    constrain_sample_cuda(arena(host, device), row_states(rows), logits_rows(logits), draw_rows(draw),
                          stream);
  });
  m.def("constrain_forced_cuda", [](uintptr_t host, uintptr_t device, const Rows& rows, uintptr_t tokens,
                                    uintptr_t lengths, int32_t most, bool advance, uintptr_t stream) {
    constrain_forced_cuda(arena(host, device), row_states(rows), at<int64_t>(tokens), at<int32_t>(lengths),
                          most, advance, stream);
  });
  m.def("constrain_fill_cuda", [](uintptr_t host, uintptr_t device, const Rows& rows, uintptr_t out,
                                  int64_t stride, uintptr_t cuda_stream) {
    constrain_fill_cuda(arena(host, device), row_states(rows), at<uint32_t>(out), stride, cuda_stream);
  });
}
#endif

}  // namespace

void bind_constrain(py::module_& m) {
  bind_compile(m);
  bind_cpu(m);
#ifdef VSTAR_WITH_CUDA
  bind_cuda(m);
#endif
}

}  // namespace vstar
