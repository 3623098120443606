// The bytes that each token id of a vocabulary stands for, sixteen bytes a token, and rows of ids.
//
//   entry   | up to 15 bytes of the token ........ | length |
//           | offset (4) | size (4) | ............ | 255    |    tokens longer than that lie behind the
//           entries
//
// One copy of sixteen bytes appends a token; the next one overwrites what was too much.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "checks.h"

namespace vstar {

constexpr int32_t kTokenMagic = 0x31545356;  // "VST1"
constexpr int32_t kEntryBytes = 16, kInlineBytes = 15, kLongToken = 255;

struct TokenHeader {
  int32_t magic, bytes, count, longest;  // longest: bytes of the longest token
};
static_assert(sizeof(TokenHeader) == kEntryBytes, "entries stay aligned");

struct TokenTable {
  const uint8_t* base;     // the block, from its header on; offsets of long tokens count from here
  const uint8_t* entries;  // [count, kEntryBytes]
  int32_t count, longest;

  TokenTable() : base(nullptr), entries(nullptr), count(0), longest(0) {}
  TokenTable(const TokenHeader& h, const uint8_t* block)
      : base(block), entries(block + sizeof(TokenHeader)), count(h.count), longest(h.longest) {}
};

struct TokenPiece {
  const uint8_t* bytes;
  int32_t size;
};

VSTAR_HD TokenPiece token_piece(const TokenTable& t, int64_t id) {
  const uint8_t* entry = t.entries + id * kEntryBytes;
  if (entry[kInlineBytes] != kLongToken) return {entry, entry[kInlineBytes]};
  const auto* place = reinterpret_cast<const int32_t*>(entry);
  return {t.base + place[0], place[1]};
}

// Rows of token ids, int32 or int64. Row r begins at offsets[r], or at r * stride; it has offsets[r + 1] -
// offsets[r], or lengths[r], or `columns` ids.
struct IdRows {
  const void* ids;
  const int64_t* offsets;
  const int64_t* lengths;
  int64_t stride;
  int32_t columns, wide;  // wide: ids are int64

  VSTAR_HD int64_t begin(int32_t r) const { return offsets ? offsets[r] : r * stride; }
  VSTAR_HD int32_t length(int32_t r) const {
    if (offsets) return static_cast<int32_t>(offsets[r + 1] - offsets[r]);
    return lengths ? static_cast<int32_t>(lengths[r]) : columns;
  }
  VSTAR_HD int64_t id(int64_t at) const {
    return wide ? static_cast<const int64_t*>(ids)[at] : static_cast<const int32_t*>(ids)[at];
  }
};

std::string compile_tokens(const std::vector<std::string_view>& pieces);

}  // namespace vstar
