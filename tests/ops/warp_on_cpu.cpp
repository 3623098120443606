// The kernels of label_match.cu on a warp of CPU threads.
#include "warp_on_cpu.h"

#include "../../csrc/label_match.cu"

using namespace vstar;

static LabelTables view(const uint8_t* block) {
  return {*reinterpret_cast<const LabelHeader*>(block), block};
}

extern "C" void label_match_warp(const uint8_t* tables, const uint8_t* text, const int64_t* offsets,
                                 const int32_t* own, int32_t* out, uint32_t* which, int32_t rows,
                                 int32_t which_words, int32_t negation) {
  const LabelOut job{own, out, which, rows, which_words, negation};
  run_warps(rows, kWarpsPerBlock, [=] { match_rows(view(tables), {text, offsets}, job); });
}

// Ragged ids, int32.
extern "C" void label_match_ids_warp(const uint8_t* tables, const uint8_t* tokens, const uint32_t* hints,
                                     const int32_t* ids, const int64_t* offsets, const int32_t* own,
                                     int32_t* out, uint32_t* which, int32_t rows, int32_t which_words,
                                     int32_t negation) {
  const LabelOut job{own, out, which, rows, which_words, negation};
  const TokenTable table(*reinterpret_cast<const TokenHeader*>(tokens), tokens);
  const TokenHints hint{hints, reinterpret_cast<const int32_t*>(hints) + table.count};
  const IdRows source{ids, offsets, nullptr, 0, 0, 0};
  run_warps(rows, kWarpsPerBlock, [=] { match_id_rows(view(tables), table, hint, source, job); });
}
