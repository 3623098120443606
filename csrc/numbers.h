// Numbers and times in UTF-8 text: sign, decimals, thousands, mm:ss, hh:mm:ss, percent, units, number words.
//
//   "about -1,200.5 ms"     value -1200.5, unit ms       "twenty-five reps"   25, reps
//   "1:02:03.5"             3723.5, a clock time         "two and a half min" 2.5, min
//   "3rd", "3D", "1.2.3"    no numbers
// Digits and letters of numbers are ASCII. One thread reads one row.
#pragma once

#include "number_text.h"
#include "units.h"

namespace vstar {

// How numbers are written: 1.2.3 is no number because '.' glues its digits together.
struct NumberStyle {
  bool thousands, sign, comma_glues;
};
constexpr NumberStyle kAnyNumber{true, true, true}, kTimeNumber{false, false, false};

struct Number {
  double value;
  int32_t unit;  // index of unit_at, or -1
  int32_t begin, end;
  bool digits, clock;  // written in digits; as mm:ss or hh:mm:ss
};

class NumberReader {
 public:
  VSTAR_HD NumberReader(const LabelTables& t, const uint8_t* text, int32_t begin, int32_t end,
                        NumberStyle style)
      : x_{t, text, end}, style_(style), at_(begin) {}

  // The next number; false behind the last one.
  VSTAR_HD_CALL bool next(Number* n) {
    while (at_ < x_.end) {
      const int kind = may_begin() ? read(n) : 0;
      if (kind == 0) at_ = x_.next(at_);
      if (kind == 2) return true;
    }
    return false;
  }

  // "3 or 4", "3-4": another number to choose from stands behind byte p.
  VSTAR_HD_CALL bool another(int32_t p) const {
    int32_t q = x_.spaces_end(p);
    const int32_t cp = x_.at(q), word = x_.literal(q, "or") >= 0 ? 2 : x_.literal(q, "to") >= 0 ? 2 : 0;
    if (word == 0 && cp != '-' && cp != 0x2013 && cp != 0x2014 && cp != '~') return false;
    q = x_.spaces_end(word ? q + word : x_.next(q));
    if (x_.digit(q) || x_.at(q) == '.') return true;
    for (int i = 0; i < 20; ++i)
      if (x_.literal(q, number_word(i)) >= 0) return true;
    for (int i = 0; i < 8; ++i)
      if (x_.literal(q, tens_word(i)) >= 0) return true;
    return false;
  }

  // Whether "or" stands between bytes p and stop, behind spaces and at most one comma.
  VSTAR_HD_CALL bool has_or(int32_t p, int32_t stop) const {
    const NumberText x{x_.t, x_.text, stop};
    int32_t q = x.spaces_end(p);
    if (x.at(q) == ',') q = x.spaces_end(q + 1);
    return x.whole(q, "or") >= 0;
  }

 private:
  VSTAR_HD bool glue(int32_t cp) const { return cp == '.' || cp == ':' || (style_.comma_glues && cp == ','); }

  VSTAR_HD bool may_begin() const {
    const uint8_t c = x_.text[at_];
    const uint8_t letter = c | 0x20;
    const bool sign = style_.sign && (c == '+' || c == '-' || c == 0xE2);
    const bool number = (c >= '0' && c <= '9') || c == '.' || letter == 'z' || letter == 'o' ||
                        letter == 't' || letter == 'f' || letter == 's' || letter == 'e' || letter == 'n';
    if (!sign && !number) return false;
    const int32_t before = x_.before(at_);
    if (before == -2) return true;
    if (before == '.' || x_.word(before)) return false;
    return !(glue(before) && at_ >= 2 && x_.digit(at_ - 2));
  }

  // 0: no number here; 1: something like one, but none ("3rd"); 2: a number. Moves on behind the last two.
  VSTAR_HD_CALL int read(Number* n) {
    const int32_t cp = x_.at(at_);
    int32_t p = at_;
    bool minus = false;
    if (cp == '+' || cp == '-' || cp == 0x2212) {
      const int32_t before = x_.before(at_);
      if (!style_.sign || before == ')' || before == ']' || before == '%') return 0;
      minus = cp != '+';
      p = x_.next(p);
    }
    *n = {0, -1, at_, -1, true, false};
    if (!clock(p, n) && !plain(p, n) && !words(p, n)) return 0;
    scale(n);
    if (minus) n->value = -n->value;
    const int32_t stop = n->end;
    int32_t q = stop;
    while (q < x_.end && (x_.at(q) == '-' || is_space(x_.at(q)))) q = x_.next(q);
    const int32_t unit_end = letters_end(q);
    at_ = unit_end > q ? unit_end : stop;
    if (unit_end == q) return 2;
    n->unit = find_unit(q, unit_end);
    if (n->unit >= 0) n->end = unit_end;
    return n->unit < 0 && q == stop && n->digits ? 1 : 2;
  }

  // Nothing at p goes on with digits: "1.2.3", "1:75".
  VSTAR_HD_CALL bool complete(int32_t p) const {
    return !x_.digit(p) && !(p < x_.end && glue(x_.text[p]) && x_.digit(p + 1));
  }

  VSTAR_HD bool sixty(int32_t p) const {
    return p + 2 < x_.end && x_.text[p] == ':' && x_.digit(p + 1) && x_.text[p + 1] < '6' && x_.digit(p + 2);
  }

  VSTAR_HD_CALL bool clock(int32_t p, Number* n) const {
    int32_t stop = x_.digits_end(p);
    if (stop == p || stop - p > 3 || !sixty(stop)) return false;
    double value = decimal(x_.text, p, stop, 0) * 60;
    if (sixty(stop + 3)) {
      value = (value + decimal(x_.text, stop + 1, stop + 3, 0)) * 60;
      stop += 3;
    }
    const int32_t seconds = stop + 1;
    stop += 3;
    if (stop < x_.end && x_.text[stop] == '.' && x_.digit(stop + 1)) stop = x_.digits_end(stop + 1);
    if (!complete(stop)) return false;
    n->value = value + decimal(x_.text, seconds, stop, 0);
    n->end = stop;
    n->clock = true;
    return true;
  }

  VSTAR_HD int32_t fraction_end(int32_t p) const {
    return p < x_.end && x_.text[p] == '.' && x_.digit(p + 1) ? x_.digits_end(p + 1) : p;
  }

  VSTAR_HD_CALL bool plain(int32_t p, Number* n) const {
    const int32_t whole = x_.digits_end(p);
    int32_t stop = whole;
    const auto group = [this](int32_t q) {
      return q + 3 < x_.end && x_.text[q] == ',' && x_.digit(q + 1) && x_.digit(q + 2) && x_.digit(q + 3);
    };
    if (style_.thousands && whole > p && whole - p <= 3) {
      while (group(stop)) stop += 4;
      const int32_t all = fraction_end(stop);
      if (stop > whole && complete(all)) return finish(p, all, 0, all, n);
    }
    stop = fraction_end(whole);
    if (stop == p) return false;
    if (whole > p && x_.lower(stop) == 'e') {
      int32_t q = stop + 1;
      const bool minus = q < x_.end && x_.text[q] == '-';
      q += q < x_.end && (x_.text[q] == '-' || x_.text[q] == '+');
      const int32_t end = x_.digits_end(q);
      if (end > q && complete(end)) {
        int64_t power = 0;
        for (; q < end; ++q) power = power < 100000 ? power * 10 + (x_.text[q] - '0') : power;
        return finish(p, stop, minus ? -power : power, end, n);
      }
    }
    return complete(stop) && finish(p, stop, 0, stop, n);
  }

  VSTAR_HD bool finish(int32_t p, int32_t stop, int64_t power, int32_t end, Number* n) const {
    n->value = decimal(x_.text, p, stop, power);
    n->end = end;
    return true;
  }

  VSTAR_HD_CALL bool words(int32_t p, Number* n) const {
    n->digits = false;
    const char* const kOften[] = {"once", "twice", "thrice"};
    for (int i = 0; i < 3; ++i)
      if ((n->end = x_.whole(p, kOften[i])) >= 0) return n->value = i + 1, true;
    for (int i = 0; i < 8; ++i) {
      const int32_t stop = x_.literal(p, tens_word(i));
      if (stop < 0) continue;
      n->value = 20 + 10 * i;
      if (x_.at(stop) == '-' || is_space(x_.at(stop)))
        for (int one = 1; one < 10; ++one)
          if ((n->end = x_.whole(x_.next(stop), number_word(one))) >= 0) return n->value += one, true;
      if (x_.word(x_.at(stop))) break;
      n->end = stop;
      return true;
    }
    for (int i = 0; i < 20; ++i)
      if ((n->end = x_.whole(p, number_word(i))) >= 0) return n->value = i, true;
    return false;
  }

  // "3 million", "two dozen", "and a half".
  VSTAR_HD_CALL void scale(Number* n) const {
    const char* const kScales[] = {"dozen", "hundred", "thousand", "million", "billion"};
    const double kFactors[] = {12, 1e2, 1e3, 1e6, 1e9};
    const int32_t p = x_.spaces_end(n->end);
    for (int i = 0; i < 5; ++i) {
      const int32_t stop = x_.whole(p, kScales[i]);
      if (stop < 0) continue;
      n->value *= kFactors[i];
      n->end = stop;
      break;
    }
    const char* const kHalf[] = {"and", "a", "half"};
    int32_t q = n->end;
    for (int i = 0; i < 3; ++i) {
      const int32_t from = x_.spaces_end(q);
      if (from == q || (q = x_.literal(from, kHalf[i])) < 0) return;
    }
    if (x_.word(x_.at(q))) return;
    n->value += 0.5;
    n->end = q;
  }

  // Where '%', a degree sign or the letters at p end.
  VSTAR_HD_CALL int32_t letters_end(int32_t p) const {
    if (x_.at(p) == '%' || x_.at(p) == 0xB0) return x_.next(p);
    while (p < x_.end) {
      const int32_t letter = x_.lower(p), cp = x_.at(p);
      if (!(letter >= 'a' && letter <= 'z') && cp != 0xB5 && cp != 0x3BC && cp != 0x39C) break;
      p = x_.next(p);
    }
    return p;
  }

  VSTAR_HD_CALL int32_t find_unit(int32_t p, int32_t stop) const {
    for (int32_t i = 0; i < kUnits; ++i) {
      const char* name = unit_at(i).name;
      int32_t q = p;
      while (q < stop && *name && x_.lower(q) == static_cast<uint8_t>(*name)) ++q, ++name;
      if (q == stop && *name == 0) return i;
    }
    return -1;
  }

  NumberText x_;
  NumberStyle style_;
  int32_t at_;
};

}  // namespace vstar
