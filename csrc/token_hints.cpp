// Writes the hints of token_text.h: each token's bytes are read as if any bytes could stand on either side.
#include <algorithm>
#include <stdexcept>

#include "token_text.h"

namespace vstar {
namespace {

// Whether the character at byte p may go on in the next token.
bool is_cut(const uint8_t* text, int32_t p, int32_t end) {
  const uint8_t lead = text[p];
  const int32_t size = lead < 0xC2 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
  if (p + size <= end) return false;
  for (int32_t i = p + 1; i < end; ++i)
    if (!is_continuation(text[i])) return false;
  return true;
}

class Hinter {
 public:
  Hinter(const LabelTables& tables, const TokenPiece& piece)
      : t_(tables), text_(piece.bytes), end_(piece.size) {}

  uint32_t hint(int32_t* behind) {
    *behind = 0;
    if (end_ > static_cast<int32_t>(kHintBytes)) throw std::invalid_argument("a token has 4 MiB or more");
    uint32_t hint = static_cast<uint32_t>(end_);
    int32_t count = 0, only = 0;
    for (int32_t p = 0; p < end_; ++p) {
      hint |= text_[p] >= 0x80 ? kHintHigh : 0;
      hint |= t_.after_length != 0 && may_begin_literal(p) ? kHintLiteral : 0;
      if (p > 0 && surely_behind_word(p)) continue;
      const Walk walk = walk_from(p);
      if (!walk.alive) continue;
      hint |= p == 0 ? kHintFirst : kHintInner;
      only = p;
      *behind = walk.state;
      ++count;
    }
    if (ends_word()) hint |= kHintWord;
    const int32_t start = count == 0 ? 0 : count > 1 || only + 1 >= kManyStarts ? kManyStarts : only + 1;
    if (start == kManyStarts) *behind = 0;
    return hint | static_cast<uint32_t>(start) << kHintStart;
  }

 private:
  struct Walk {
    bool alive;
    int32_t state;  // where matching may go on behind the token; 0: not known
  };

  // Bytes that begin with continuations may belong to a character of the token before.
  bool is_head(int32_t p) const {
    for (int32_t i = 0; i <= p; ++i)
      if (!is_continuation(text_[i])) return false;
    return p < 3;
  }

  bool surely_behind_word(int32_t p) const { return !is_head(p - 1) && word_before(t_, text_, p); }

  bool ends_word() const {
    if (end_ == 0 || is_head(end_ - 1)) return false;
    const int32_t lead = char_before(text_, end_);
    return !is_cut(text_, lead, end_) && word_before(t_, text_, end_);
  }

  // Whether a label may begin at byte p, whatever comes behind the token.
  Walk walk_from(int32_t p) const {
    if (is_cut(text_, p, end_)) return {true, 0};
    Char c = read_char(t_, text_, p, end_);
    int32_t state = t_.root_child[symbol_of(c.code)];
    bool ended = false, separated = false;
    while (state != 0 && c.next < end_) {
      const int32_t here = c.next;
      if (is_cut(text_, here, end_)) return {true, 0};
      c = read_unit(t_, text_, here, end_);
      separated = c.code == kSeparator;
      const Node node = t_.nodes[state];
      ended |= node.label >= 0 && !is_word(c.code);
      state = child_of(t_, node, symbol_of(c.code));
    }
    // a run of separators may go on in the next token, as may a character behind it
    const bool whole = state != 0 && !ended && !separated;
    return {state != 0 || ended, whole ? state : 0};
  }

  bool may_begin_literal(int32_t p) const {
    for (int32_t i = 0; i < t_.after_length; ++i) {
      if (p >= end_ || is_cut(text_, p, end_)) return true;
      const Char c = read_unit(t_, text_, p, end_);
      if (symbol_of(c.code) != symbol_of(t_.after[i])) return false;
      p = c.next;
    }
    return true;
  }

  const LabelTables& t_;
  const uint8_t* text_;
  int32_t end_;
};

}  // namespace

void compile_hints(const LabelTables& tables, const TokenTable& tokens, uint32_t* hint, int32_t* behind) {
  for (int32_t id = 0; id < tokens.count; ++id)
    hint[id] = Hinter(tables, token_piece(tokens, id)).hint(&behind[id]);
}

}  // namespace vstar
