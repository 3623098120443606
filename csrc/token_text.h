// A row of token ids read as the text that they spell, and what each token can mean for a label set.
//
// Most tokens can neither begin a label nor end a word before one. A hint of 32 bits a token says so, for one
// label set and one vocabulary, so that a row is searched by looking its ids up, and only few bytes are read:
//
//   ids     T he | spin | ning | kick | .        first   . . 1 . 1 .    a label may begin at the first byte
//   hints   . .    first  word   first  .        word    1 1 1 1 1 .    the last character is of a word
//
// A label may begin in a token whose hint says `inner`, or `first` unless the token before it says `word`.
// Where they do not know (characters cut by tokens), hints say yes; the text has the last word.
#pragma once

#include "label_match.h"
#include "token_bytes.h"

namespace vstar {

// A hint: bytes of the token (22 bits), flags, and in the top five bits 1 + the only byte at which a label
// may begin, kManyStarts when it may at several, 0 when at none.
constexpr uint32_t kHintBytes = (1u << 22) - 1;
constexpr uint32_t kHintFirst = 1u << 22, kHintInner = 1u << 23, kHintWord = 1u << 24,
                   kHintLiteral = 1u << 25, kHintHigh = 1u << 26;
constexpr int kHintStart = 27;
constexpr int32_t kManyStarts = 31;

struct TokenHints {
  const uint32_t* hint;   // [count]
  const int32_t* behind;  // [count] state behind the token, entered at its only start; 0: read its bytes
};

// The bytes of one row of ids that are all in the vocabulary. Reading moves a cursor, so neighbours are
// cheap.
class TokenText {
 public:
  VSTAR_HD TokenText(const TokenTable& tokens, const IdRows& ids, int32_t row)
      : tokens_(tokens), ids_(ids), origin_(ids.begin(row)), count_(ids.length(row)) {}

  VSTAR_HD uint8_t operator[](int32_t p) const {
    while (p >= end_) load(token_ + 1, end_);
    while (p < begin_) load_before();
    return bytes_[p - begin_];
  }

  // Puts the cursor on a token whose first byte is known.
  VSTAR_HD void load(int32_t token, int32_t begin) const {
    const TokenPiece piece = token_piece(tokens_, id(token));
    token_ = token;
    begin_ = begin;
    end_ = begin + piece.size;
    bytes_ = piece.bytes;
  }

  // The token that holds byte p.
  VSTAR_HD int32_t token_at(int32_t p) const {
    (void)(*this)[p];
    return token_;
  }

  VSTAR_HD int64_t id(int32_t token) const { return ids_.id(origin_ + token); }
  VSTAR_HD int32_t count() const { return count_; }

 private:
  VSTAR_HD void load_before() const {
    const int32_t stop = begin_;
    load(token_ - 1, 0);
    begin_ = stop - end_;
    end_ = stop;
  }

  const TokenTable& tokens_;
  const IdRows& ids_;
  int64_t origin_;
  int32_t count_;
  mutable int32_t token_ = -1, begin_ = 0, end_ = 0;
  mutable const uint8_t* bytes_ = nullptr;
};

// Calls found(begin, ends) for each place of token `i`, which begins at byte `begin`, from byte `start` on,
// where a label begins.
template <class Seen, class Found>
VSTAR_HD void match_token(const LabelTables& t, const TokenHints& hints, const TokenText& text, int32_t i,
                          int32_t begin, int32_t start, int32_t end, int32_t own, Seen seen, Found found) {
  const int64_t id = text.id(i);
  const uint32_t hint = hints.hint[id];
  const auto only = static_cast<int32_t>(hint >> kHintStart);
  const int32_t size = static_cast<int32_t>(hint & kHintBytes), behind = hints.behind[id];
  const bool many = only == kManyStarts;
  text.load(i, begin);
  for (int32_t p = many ? begin : begin + only - 1; p < begin + size; ++p) {
    if (p >= start && !word_before(t, text, p)) {
      const Ends ends = behind != 0 ? match_on(t, text, behind, begin + size, end, own, seen)
                                    : match_from(t, text, read_char(t, text, p, end), end, own, seen);
      if (ends.longest) found(p, ends);
    }
    if (!many) return;
  }
}

// Byte behind the last place in token `i` where the literal begins, or -1.
VSTAR_HD int32_t literal_in_token(const LabelTables& t, const TokenText& text, int32_t begin, int32_t size,
                                  int32_t end) {
  for (int32_t p = begin + size - 1; p >= begin; --p) {
    const int32_t stop = literal_end(t, text, p, end);
    if (stop >= 0) return stop;
  }
  return -1;
}

// Fills hint and behind, [tokens.count] each; throws std::invalid_argument for a token of 4 MiB or more.
void compile_hints(const LabelTables& tables, const TokenTable& tokens, uint32_t* hint, int32_t* behind);

}  // namespace vstar
