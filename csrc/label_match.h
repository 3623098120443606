// label_match: where labels occur in UTF-8 text, on word boundaries, with case and separators equal.
//
// A text is read as a string of codes, one a character:
//
//   "A  Front_Kick!"   ->   [a] SEP f r o n t SEP k i c k .     runs of spaces, '_' and '-' are one SEP,
//                                                               characters of no label are 0
// A label is a path in a trie over such codes. A match starts at a character of the trie's root with no word
// character before it, follows the path, and ends at a state that has a label with no word character after
// it. Every start position is tested on its own, so the CPU walks them in order and a GPU warp 32 at a time.
//
// Most words begin no label. So the trie is entered behind a label's first word (its ASCII letters and
// digits, at most eight): a bitmap over hashes says which words can, a hash table gives the state they lead
// to.
//
// A `Text` is anything that gives the byte at a position: a pointer, or rows of token ids (token_text.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checks.h"

namespace vstar {

constexpr uint16_t kWordFlag = 0x8000;  // set in the code of letters, marks and numbers
constexpr uint16_t kNoSymbol = 0;       // a character that stands in no label
constexpr uint16_t kSeparator = 1;      // spaces, dashes, connectors such as '_'
constexpr int32_t kPages = 0x110000 >> 8;
constexpr int32_t kKeyBytes = 8;  // of a first word that are hashed

// Columns of a result row. Spans are begin, end; -1 for none.
enum LabelColumn {
  kFirst = 0,         // first occurrence of the own label, in bytes
  kLast = 2,          // last occurrence
  kSearchedFrom = 4,  // byte where the search began, -1 when the literal is absent
  kFlags = 5,
  kFirstToken = 6,
  kLastToken = 8,
  kFirstChar = 10,
  kLastChar = 12,
  kBadToken = 14,  // position of the first id outside the vocabulary, or -1
  kLength = 15,    // bytes of the row
  kRowInts = 16
};
constexpr int32_t kInsideLonger = 1, kNegated = 2;  // bits of kFlags

// Compiled labels: one block of memory that starts with this header; offsets count bytes from the block's
// start.
struct LabelHeader {
  int32_t magic, bytes, symbols, states, after_length;
  int32_t page_index, pages, root_child, nodes, state_symbol, after;
  int32_t filter, filter_shift, entries, entry_shift, entry_mask, odd_roots, has_odd_roots;
};
constexpr int32_t kLabelMagic = 0x324C5356;  // "VSL2"

// A first word: lower case, zero-padded; `state` is 0 in an empty slot.
struct FirstWord {
  uint64_t key;
  int32_t state, unused;
};

// A state: its children are `first_child` and the `children - 1` states that follow it.
struct Node {
  int32_t first_child;
  int32_t label;  // whose name ends here, or -1
  int32_t children;
  int32_t symbol;  // leads to the first child
};

struct LabelTables {
  const uint16_t* page_index;    // [kPages] page of code points cp >> 8
  const uint16_t* pages;         // [pages, 256] code of a character; page 0 holds Latin-1
  const int32_t* root_child;     // [symbols] state after one character, 0 for none
  const Node* nodes;             // [states]
  const uint16_t* state_symbol;  // [states] symbol that leads to a state; ascending among siblings
  const uint16_t* after;         // [after_length] codes of the literal that must come first
  const uint32_t* filter;    // [2^(64 - filter_shift) / 32] bit of a hash: some label has such a first word
  const FirstWord* entries;  // [entry_mask + 1] open addressing from hash >> entry_shift
  const uint8_t* odd_roots;  // [128] ASCII characters other than letters and digits that begin a label
  int32_t after_length, filter_shift, entry_shift, entry_mask, has_odd_roots;

  LabelTables(const LabelHeader& h, const uint8_t* base)
      : page_index(reinterpret_cast<const uint16_t*>(base + h.page_index)),
        pages(reinterpret_cast<const uint16_t*>(base + h.pages)),
        root_child(reinterpret_cast<const int32_t*>(base + h.root_child)),
        nodes(reinterpret_cast<const Node*>(base + h.nodes)),
        state_symbol(reinterpret_cast<const uint16_t*>(base + h.state_symbol)),
        after(reinterpret_cast<const uint16_t*>(base + h.after)),
        filter(reinterpret_cast<const uint32_t*>(base + h.filter)),
        entries(reinterpret_cast<const FirstWord*>(base + h.entries)),
        odd_roots(base + h.odd_roots),
        after_length(h.after_length),
        filter_shift(h.filter_shift),
        entry_shift(h.entry_shift),
        entry_mask(h.entry_mask),
        has_odd_roots(h.has_odd_roots) {}
};

struct Char {
  uint16_t code;
  int32_t next;  // byte position of the following character
};

struct CodePoint {
  int32_t value;  // -1 for a byte that is not valid UTF-8
  int32_t next;
};

VSTAR_HD bool is_word(uint16_t code) { return code & kWordFlag; }
VSTAR_HD uint16_t symbol_of(uint16_t code) { return code & static_cast<uint16_t>(~kWordFlag); }
VSTAR_HD bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The code point at byte p. Bytes that are not valid UTF-8 are one character each.
template <class Text>
VSTAR_HD CodePoint read_code_point(const Text& text, int32_t p, int32_t end) {
  const uint8_t lead = text[p];
  if (lead < 0x80) return {lead, p + 1};
  const int32_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0 || p + size > end) return {-1, p + 1};
  int32_t cp = lead & (0xFF >> (size + 1));
  for (int32_t i = 1; i < size; ++i) {
    if (!is_continuation(text[p + i])) return {-1, p + 1};
    cp = (cp << 6) | (text[p + i] & 0x3F);
  }
  const bool overlong = (size == 3 && cp < 0x800) || (size == 4 && cp < 0x10000);
  if (overlong || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) return {-1, p + 1};
  return {cp, p + size};
}

VSTAR_HD uint16_t code_of(const LabelTables& t, int32_t cp) {
  return cp < 0 ? kNoSymbol : t.pages[(static_cast<int32_t>(t.page_index[cp >> 8]) << 8) | (cp & 0xFF)];
}

// The character at byte p; one that is not valid UTF-8 belongs to no label and no word.
template <class Text>
VSTAR_HD Char read_char(const LabelTables& t, const Text& text, int32_t p, int32_t end) {
  if (text[p] < 0x80) return {t.pages[text[p]], p + 1};
  const CodePoint c = read_code_point(text, p, end);
  return {code_of(t, c.value), c.next};
}

// As read_char, with a run of separators read as one.
template <class Text>
VSTAR_HD Char read_unit(const LabelTables& t, const Text& text, int32_t p, int32_t end) {
  Char c = read_char(t, text, p, end);
  if (c.code != kSeparator) return c;
  while (c.next < end) {
    const Char more = read_char(t, text, c.next, end);
    if (more.code != kSeparator) break;
    c.next = more.next;
  }
  return c;
}

// Where the character that ends at byte p > 0 begins.
template <class Text>
VSTAR_HD int32_t char_before(const Text& text, int32_t p) {
  int32_t lead = p - 1;
  while (lead > 0 && p - lead < 4 && is_continuation(text[lead])) --lead;
  return read_code_point(text, lead, p).next == p ? lead : p - 1;
}

template <class Text>
VSTAR_HD bool word_before(const LabelTables& t, const Text& text, int32_t p) {
  return p > 0 && is_word(read_char(t, text, char_before(text, p), p).code);
}

// The state after the one that `node` describes on `symbol`, or 0.
VSTAR_HD int32_t child_of(const LabelTables& t, const Node& node, uint16_t symbol) {
  if (node.symbol == symbol) return node.first_child;
  int32_t low = node.first_child + 1, high = node.first_child + node.children;
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
  int32_t own = 0, longest = 0, label = -1;  // label: which one is the longest
};

// All labels on the way on from `state`, reached at byte `here`; calls seen(label) for each.
template <class Text, class Seen>
VSTAR_HD Ends match_on(const LabelTables& t, const Text& text, int32_t state, int32_t here, int32_t end,
                       int32_t own, Seen seen) {
  Ends ends;
  while (state != 0) {
    const bool at_end = here >= end;
    const Char c = at_end ? Char{kNoSymbol, here} : read_unit(t, text, here, end);
    const Node node = t.nodes[state];
    if (node.label >= 0 && !is_word(c.code)) {
      ends.longest = here;
      ends.label = node.label;
      if (node.label == own) ends.own = here;
      seen(node.label);
    }
    state = at_end ? 0 : child_of(t, node, symbol_of(c.code));
    here = c.next;
  }
  return ends;
}

// All labels that start with the character `c`, which no word character stands before.
template <class Text, class Seen>
VSTAR_HD Ends match_from(const LabelTables& t, const Text& text, Char c, int32_t end, int32_t own,
                         Seen seen) {
  return match_on(t, text, t.root_child[symbol_of(c.code)], c.next, end, own, seen);
}

VSTAR_HD uint64_t hash_key(uint64_t key) { return key * 0x9E3779B97F4A7C15ull; }

// The state behind a first word, or 0.
VSTAR_HD int32_t enter(const LabelTables& t, uint64_t key) {
  for (auto at = static_cast<int32_t>(hash_key(key) >> t.entry_shift);; at = (at + 1) & t.entry_mask) {
    if (t.entries[at].key == key || t.entries[at].state == 0) return t.entries[at].state;
  }
}

// Where the text after the literal that starts at byte p begins, or -1 when it does not stand there.
template <class Text>
VSTAR_HD int32_t literal_end(const LabelTables& t, const Text& text, int32_t p, int32_t end) {
  for (int32_t i = 0; i < t.after_length; ++i) {
    if (p >= end) return -1;
    const Char c = read_unit(t, text, p, end);
    if (symbol_of(c.code) != symbol_of(t.after[i])) return -1;
    p = c.next;
  }
  return p;
}

// Where the text after the last place of the literal begins: 0 without a literal, -1 when it is absent.
template <class Text>
VSTAR_HD_CALL int32_t last_literal(const LabelTables& t, const Text& text, int32_t end) {
  if (t.after_length == 0) return 0;
  const uint16_t first = symbol_of(t.after[0]);
  for (int32_t p = end - 1; p >= 0; --p) {
    if (text[p] < 0x80 && symbol_of(t.pages[text[p]]) != first) continue;
    const int32_t stop = literal_end(t, text, p, end);
    if (stop >= 0) return stop;
  }
  return -1;
}

// Compiles names given as folded code points, runs of separators written as one space: forms[i] names label
// owners[i]. Returns the block that LabelHeader describes; throws std::invalid_argument on names it cannot
// hold.
std::string compile_labels(const std::vector<std::u32string>& forms, const std::vector<int32_t>& owners,
                           const std::u32string& after);
int32_t char_kind(int32_t code_point);  // 1 word character, 2 separator, 0 neither
int32_t char_fold(int32_t code_point);  // simple case folding

}  // namespace vstar
