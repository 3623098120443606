// A row's text as the reader of numbers sees it, number words, and digits as a value.
#pragma once

#include "negation.h"

namespace vstar {

// A row's text with the tests that its numbers need.
struct NumberText {
  const LabelTables& t;
  const uint8_t* text;
  int32_t end;

  VSTAR_HD int32_t at(int32_t p) const { return p < end ? read_code_point(text, p, end).value : -2; }
  VSTAR_HD int32_t next(int32_t p) const { return read_code_point(text, p, end).next; }
  VSTAR_HD int32_t before(int32_t p) const {
    return p > 0 ? read_code_point(text, char_before(text, p), p).value : -2;
  }
  VSTAR_HD bool word(int32_t cp) const { return cp == '_' || (cp >= 0 && is_word(code_of(t, cp))); }
  VSTAR_HD bool digit(int32_t p) const { return p < end && text[p] >= '0' && text[p] <= '9'; }
  VSTAR_HD int32_t digits_end(int32_t p) const {
    while (digit(p)) ++p;
    return p;
  }
  VSTAR_HD_CALL int32_t spaces_end(int32_t p) const {
    while (p < end && is_space(at(p))) p = next(p);
    return p;
  }
  VSTAR_HD int32_t lower(int32_t p) const {
    return p < end && text[p] >= 'A' && text[p] <= 'Z' ? text[p] + 32 : p < end ? text[p] : -1;
  }
  // Where `what` (lower-case ASCII) that begins at p ends, or -1.
  VSTAR_HD_CALL int32_t literal(int32_t p, const char* what) const {
    for (; *what; ++what, ++p)
      if (lower(p) != *what) return -1;
    return p;
  }
  // As literal, for a word with nothing of a word behind it.
  VSTAR_HD_CALL int32_t whole(int32_t p, const char* what) const {
    const int32_t stop = literal(p, what);
    return stop >= 0 && !word(at(stop)) ? stop : -1;
  }
};

VSTAR_HD_CALL const char* number_word(int32_t value) {
  const char* const kSmall[] = {"zero",    "one",     "two",       "three",    "four",
                                "five",    "six",     "seven",     "eight",    "nine",
                                "ten",     "eleven",  "twelve",    "thirteen", "fourteen",
                                "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
  return kSmall[value];
}

VSTAR_HD_CALL const char* tens_word(int32_t ten) {
  const char* const kTens[] = {"twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"};
  return kTens[ten];
}

// Digits with at most one '.', commas skipped, as a number: exact to 15 digits, within a few units of the
// last place beyond. `power` moves the decimal point.
VSTAR_HD_CALL double decimal(const uint8_t* text, int32_t p, int32_t stop, int64_t power) {
  uint64_t digits = 0;
  bool fraction = false;
  for (; p < stop; ++p) {
    if (text[p] == '.') fraction = true;
    if (text[p] < '0' || text[p] > '9') continue;
    if (digits < 900000000000000000ull) {
      digits = digits * 10 + (text[p] - '0');
      power -= fraction;
    } else {
      power += !fraction;
    }
  }
  double value = static_cast<double>(digits);
  if (value == 0) return 0;
  for (; power > 0; power -= power < 22 ? power : 22) {
    double factor = 1;
    for (int64_t i = 0; i < power && i < 22; ++i) factor *= 10;
    value *= factor;
  }
  for (; power < 0 && value > 0; power += -power < 22 ? -power : 22) {
    double factor = 1;
    for (int64_t i = 0; i < -power && i < 22; ++i) factor *= 10;
    value /= factor;
  }
  return value;
}

}  // namespace vstar
