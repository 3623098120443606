// label_match: where labels occur in UTF-8 text, on word boundaries, with case and separators equal.
//
// A text is read as a string of codes, one a character:
//
//   "A  Front_Kick!"   ->   [a] SEP f r o n t SEP k i c k .     runs of spaces, '_' and '-' are one SEP,
//                                                               characters of no label are 0
// A label is a path in a trie over such codes. A match starts at a character of the trie's root with no word
// character before it, follows the path, and ends at a state that has a label with no word character after
// it. Every start position is tested on its own, so the CPU walks them in order and a GPU warp 32 at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"

namespace vstar {

constexpr uint16_t kWordFlag = 0x8000;  // set in the code of letters, marks and numbers
constexpr uint16_t kNoSymbol = 0;       // a character that stands in no label
constexpr uint16_t kSeparator = 1;      // spaces, dashes, connectors such as '_'
constexpr int32_t kPages = 0x110000 >> 8;
constexpr int kRowInts = 6;

// Compiled labels: one block of memory that starts with this header; offsets count bytes from the block's
// start.
struct LabelHeader {
  int32_t magic, bytes, symbols, states, after_length;
  int32_t page_index, pages, root_child, first_child, state_symbol, state_label, after;
};
constexpr int32_t kLabelMagic = 0x314C5356;  // "VSL1"

struct LabelTables {
  const uint16_t* page_index;    // [kPages] page of code points cp >> 8
  const uint16_t* pages;         // [pages, 256] code of a character; page 0 holds Latin-1
  const int32_t* root_child;     // [symbols] state after one character, 0 for none
  const int32_t* first_child;    // [states + 1] children of state s are first_child[s] .. first_child[s + 1]
  const uint16_t* state_symbol;  // [states] symbol that leads to a state; ascending among siblings
  const int32_t* state_label;    // [states] label whose name ends here, or -1
  const uint16_t* after;         // [after_length] codes of the literal that must come first
  int32_t after_length;

  LabelTables(const LabelHeader& h, const uint8_t* base)
      : page_index(reinterpret_cast<const uint16_t*>(base + h.page_index)),
        pages(reinterpret_cast<const uint16_t*>(base + h.pages)),
        root_child(reinterpret_cast<const int32_t*>(base + h.root_child)),
        first_child(reinterpret_cast<const int32_t*>(base + h.first_child)),
        state_symbol(reinterpret_cast<const uint16_t*>(base + h.state_symbol)),
        state_label(reinterpret_cast<const int32_t*>(base + h.state_label)),
        after(reinterpret_cast<const uint16_t*>(base + h.after)),
        after_length(h.after_length) {}
};

// Rows to match: row r is text[offsets[r] .. offsets[r + 1]); own[r] is its label, or -1.
struct LabelRows {
  const uint8_t* text;
  const int64_t* offsets;
  const int32_t* own;
  int32_t rows;
  int32_t*
      out;  // [rows, kRowInts] first begin, first end, last begin, last end, searched from, inside longer
  uint32_t* which;  // [rows, which_words] bit l % 32 of word l / 32: label l occurs; null when not wanted
  int32_t which_words;
};

struct Char {
  uint16_t code;
  int32_t next;  // byte position of the following character
};

VSTAR_HD bool is_word(uint16_t code) { return code & kWordFlag; }
VSTAR_HD uint16_t symbol_of(uint16_t code) { return code & static_cast<uint16_t>(~kWordFlag); }
VSTAR_HD bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The character at byte p. Bytes that are not valid UTF-8 are one character each, of no label and no word.
VSTAR_HD Char read_char(const LabelTables& t, const uint8_t* text, int32_t p, int32_t end) {
  const uint8_t lead = text[p];
  if (lead < 0x80) return {t.pages[lead], p + 1};
  const int32_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0 || p + size > end) return {kNoSymbol, p + 1};
  int32_t cp = lead & (0xFF >> (size + 1));
  for (int32_t i = 1; i < size; ++i) {
    if (!is_continuation(text[p + i])) return {kNoSymbol, p + 1};
    cp = (cp << 6) | (text[p + i] & 0x3F);
  }
  const bool overlong = (size == 3 && cp < 0x800) || (size == 4 && cp < 0x10000);
  if (overlong || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) return {kNoSymbol, p + 1};
  return {t.pages[(static_cast<int32_t>(t.page_index[cp >> 8]) << 8) | (cp & 0xFF)], p + size};
}

// As read_char, with a run of separators read as one.
VSTAR_HD Char read_unit(const LabelTables& t, const uint8_t* text, int32_t p, int32_t end) {
  Char c = read_char(t, text, p, end);
  if (c.code != kSeparator) return c;
  while (c.next < end) {
    const Char more = read_char(t, text, c.next, end);
    if (more.code != kSeparator) break;
    c.next = more.next;
  }
  return c;
}

VSTAR_HD bool word_before(const LabelTables& t, const uint8_t* text, int32_t p) {
  int32_t lead = p - 1;
  while (lead > 0 && p - lead < 4 && is_continuation(text[lead])) --lead;
  if (lead < 0) return false;
  const Char c = read_char(t, text, lead, p);
  return c.next == p && is_word(c.code);
}

// The state after `state` on `symbol`, or 0.
VSTAR_HD int32_t child_of(const LabelTables& t, int32_t state, uint16_t symbol) {
  int32_t low = t.first_child[state], high = t.first_child[state + 1];
  while (high - low > 4) {
    const int32_t middle = (low + high) / 2;
    if (t.state_symbol[middle] <= symbol)
      low = middle;
    else
      high = middle;
  }
  for (; low < high; ++low)
    if (t.state_symbol[low] == symbol) return low;
  return 0;
}

// Ends of the longest match of the row's own label, and of any label, that start at one place; 0 for none.
struct Ends {
  int32_t own, longest;
};

// All labels that start with the character `c`, which no word character stands before; calls seen(label) for
// each.
template <class Seen>
VSTAR_HD Ends match_from(const LabelTables& t, const uint8_t* text, Char c, int32_t end, int32_t own,
                         Seen seen) {
  Ends ends{0, 0};
  int32_t state = t.root_child[symbol_of(c.code)];
  while (state != 0) {
    const int32_t here = c.next;
    const bool at_end = here >= end;
    if (!at_end) c = read_unit(t, text, here, end);
    const int32_t label = t.state_label[state];
    if (label >= 0 && (at_end || !is_word(c.code))) {
      ends.longest = here;
      if (label == own) ends.own = here;
      seen(label);
    }
    state = at_end ? 0 : child_of(t, state, symbol_of(c.code));
  }
  return ends;
}

// Where the text after the literal that starts at byte p begins, or -1 when it does not stand there.
VSTAR_HD int32_t literal_end(const LabelTables& t, const uint8_t* text, int32_t p, int32_t end) {
  for (int32_t i = 0; i < t.after_length; ++i) {
    if (p >= end) return -1;
    const Char c = read_unit(t, text, p, end);
    if (symbol_of(c.code) != symbol_of(t.after[i])) return -1;
    p = c.next;
  }
  return p;
}

// Compiles names given as folded code points, runs of separators written as one space: forms[i] names label
// owners[i]. Returns the block that LabelHeader describes; throws std::invalid_argument on names it cannot
// hold.
std::string compile_labels(const std::vector<std::vector<int32_t>>& forms, const std::vector<int32_t>& owners,
                           const std::vector<int32_t>& after);
int32_t char_kind(int32_t code_point);  // 1 word character, 2 separator, 0 neither
int32_t char_fold(int32_t code_point);  // simple case folding

void label_match_cpu(const LabelTables& tables, const LabelRows& rows, int threads);
void label_match_cuda(const LabelTables& tables, const LabelRows& rows, uintptr_t stream);

}  // namespace vstar
