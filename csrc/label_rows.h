// The rows of one label_match call, and where its results go.
#pragma once

#include <string_view>
#include <vector>

#include "label_match.h"
#include "token_bytes.h"
#include "token_text.h"

namespace vstar {

struct LabelOut {
  const int32_t* own;  // [rows] the row's label, or -1
  int32_t* out;        // [rows, kRowInts], see LabelColumn
  uint32_t* which;     // [rows, which_words] bit l % 32 of word l / 32: label l occurs; null when not wanted
  int32_t rows, which_words, negation;  // negation: also tell whether the own label is denied
};

// One row as text; `bad` is the position of its first id outside the vocabulary, or -1.
struct RowText {
  const uint8_t* text;
  int32_t end, bad;
};

// Texts of a call on the GPU: row r is text[offsets[r] .. offsets[r + 1]).
struct TextRows {
  const uint8_t* text;
  const int64_t* offsets;
};

void label_match_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                     const LabelOut& out, int threads);
// Without hints (null) the rows are spread into bytes first: better for few rows than making hints.
void label_match_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const TokenHints& hints,
                         const IdRows& ids, const LabelOut& out, int threads);
void label_match_cuda(const LabelTables& tables, const TextRows& texts, const LabelOut& out,
                      uintptr_t stream);
void label_match_ids_cuda(const LabelTables& tables, const TokenTable& tokens, const TokenHints& hints,
                          const IdRows& ids, const LabelOut& out, uintptr_t stream);

}  // namespace vstar
