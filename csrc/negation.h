// Is what stands at a place denied in the same clause: "not a backflip", "isn't really a backflip"?
//
// The 60 characters before it are read backwards: quotes and spaces, up to three words other than "but",
// "only", "just" and "doubt", then a word of denial. Places are bits of a mask, one a character of that
// window:
//
//   i s   n o t   a   b a c k f l i p
//         ^-----^ ^-^                    bits: after the quotes; before one word more; ... ; a denial ends
//         there
#pragma once

#include "label_match.h"

namespace vstar {

constexpr int kNegationWindow = 60;

// Letters as a case-insensitive comparison with ASCII sees them.
VSTAR_HD int32_t ascii_fold(int32_t cp) {
  if ('A' <= cp && cp <= 'Z') return cp + 32;
  if (cp == 0x17F) return 's';
  if (cp == 0x130 || cp == 0x131) return 'i';
  return cp == 0x212A ? 'k' : cp;
}

VSTAR_HD bool is_space(int32_t cp) {
  return (9 <= cp && cp <= 13) || (28 <= cp && cp <= 32) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
         (0x2000 <= cp && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
         cp == 0x3000;
}

struct NegationWindow {
  int32_t point[kNegationWindow];
  int32_t count = 0;
  uint64_t word = 0, gap = 0, quote = 0;

  VSTAR_HD bool word_at(int i) const { return i >= 0 && i < count && (word >> i & 1); }

  VSTAR_HD bool spells(int at, const char* what, int length) const {
    for (int i = 0; i < length; ++i)
      if (ascii_fold(point[at + i]) != what[i]) return false;
    return true;
  }

  // Whether a denial ends at place `stop`.
  VSTAR_HD_CALL bool denial_ends(int stop) const {
    const char* const kWords[] = {"not",        "no",         "never",       "neither",
                                  "nor",        "without",    "cannot",      "rather than",
                                  "instead of", "other than", "anything but"};
    const int kSizes[] = {3, 2, 5, 7, 3, 7, 6, 11, 10, 10, 12};
    for (int i = 0; i < 11; ++i) {
      const int at = stop - kSizes[i];
      if (at >= 0 && !word_at(at - 1) && spells(at, kWords[i], kSizes[i])) return true;
    }
    if (stop < 3 || ascii_fold(point[stop - 1]) != 't' || ascii_fold(point[stop - 3]) != 'n') return false;
    return point[stop - 2] == '\'' || point[stop - 2] == 0x2019;
  }

  // Whether the word at place `at` ends a denial's reach: "not only", "not just".
  VSTAR_HD_CALL bool stops(int at) const {
    const char* const kWords[] = {"but", "only", "just", "doubt"};
    const int kSizes[] = {3, 4, 4, 5};
    for (int i = 0; i < 4; ++i) {
      const int stop = at + kSizes[i];
      if (stop <= count && !word_at(stop) && spells(at, kWords[i], kSizes[i])) return true;
    }
    return false;
  }

  // Places before one word more, and the gap before that word.
  VSTAR_HD_CALL uint64_t before_word(uint64_t places) const {
    uint64_t found = 0;
    for (int stop = 2; stop <= count; ++stop) {
      if (!(places >> stop & 1)) continue;
      for (int at = stop - 1; word_at(at); --at) {
        if (stops(at)) continue;
        for (int i = at - 1; i >= 0 && (gap >> i & 1); --i) found |= uint64_t{1} << i;
      }
    }
    return found;
  }
};

// Whether what stands at byte `at` is denied in the text from byte `start` on.
template <class Text>
VSTAR_HD_CALL bool negated(const LabelTables& t, const Text& text, int32_t start, int32_t at) {
  int32_t p = at;
  NegationWindow w;
  while (w.count < kNegationWindow && p > start) p = char_before(text, p), ++w.count;
  for (int32_t i = 0, from = p; i < w.count; ++i) {
    const CodePoint c = read_code_point(text, from, at);
    const uint64_t bit = uint64_t{1} << i;
    const bool common = is_space(c.value) || c.value == '"' || c.value == '\'' || c.value == '*' ||
                        c.value == '_' || c.value == '-';
    w.point[i] = c.value;
    if (c.value == '_' || is_word(code_of(t, c.value))) w.word |= bit;
    if (common) w.gap |= bit;
    if (common || c.value == 0x201C || c.value == 0x2018 || c.value == '(') w.quote |= bit;
    from = c.next;
  }
  uint64_t places = uint64_t{1} << w.count;
  for (int i = w.count - 1; i >= 0 && (w.quote >> i & 1); --i) places |= uint64_t{1} << i;
  for (int words = 0; words <= 3; ++words) {
    for (int stop = 2; stop <= w.count; ++stop)
      if ((places >> stop & 1) && w.denial_ends(stop)) return true;
    places = w.before_word(places);
  }
  return false;
}

}  // namespace vstar
