// match_number, match_interval and match_sequence: values read out of each row's text and set against its
// own. One thread owns one row, on the CPU and on the GPU; all of it is the same code.
#pragma once

#include "numbers.h"
#include "value_sequence.h"

namespace vstar {

// Writes n's value in the unit `own` and returns true; false when it measures something else.
VSTAR_HD_CALL bool in_unit(const Number& n, int32_t own, double* value) {
  *value = n.value;
  if (!n.clock && n.unit < 0) return true;
  Unit from = n.clock ? Unit{"", kTime, 1} : unit_at(n.unit);
  if (own < 0) {
    if (from.dimension == kShare && own == -1) *value = n.value * 0.01;
    return true;
  }
  const Unit to = unit_at(own);
  if (n.unit == kMetre && !n.clock && to.dimension == kTime) from = {"", kTime, 60};
  if (from.dimension != to.dimension) return false;
  if (from.factor != to.factor) *value = n.value * from.factor / to.factor;
  return true;
}

VSTAR_HD_CALL double magnitude(double x) { return x < 0 ? -x : x; }

// Where reading begins and whether the last value counts; false when the row has no slot.
VSTAR_HD_CALL bool reading(const LabelTables& t, const uint8_t* text, int32_t end, int32_t pick,
                           int32_t* from, bool* last) {
  *from = last_literal(t, text, end);
  *last = pick == kPickLast || (pick == kPickSlot && *from < 0);
  if (*from < 0 && pick == kPickSlot) *from = 0;
  return *from >= 0;
}

VSTAR_HD_CALL void number_row(const LabelTables& t, const uint8_t* text, int32_t end, const ValueJob& job,
                              int32_t r) {
  int32_t from;
  bool last;
  const double none = __builtin_nan("");
  double* values = job.values + 2 * static_cast<int64_t>(r);
  values[0] = values[1] = none;
  job.score[r] = 0;
  if (!reading(t, text, end, job.pick, &from, &last)) return value_row(job, r, kNoSlot, -1, -1, false, -1);
  NumberReader reader(t, text, from, end, kAnyNumber);
  Number number, more;
  if (!reader.next(&number)) return value_row(job, r, kNoValue, -1, -1, false, from);
  while (last && reader.next(&more)) number = more;
  int32_t status = kOk;
  double value;
  if (!in_unit(number, job.units[r], &value)) {
    values[0] = number.value;
    status = kWrongUnit;
  } else {
    const double gold = job.gold[r], size = magnitude(gold);
    const double allowed = job.absolute[r] + job.relative[r] * size + 1e-9 * (size > 1 ? size : 1);
    values[0] = value;
    values[1] = magnitude(value - gold);
    status = reader.another(number.end) ? kAmbiguous : values[1] <= allowed ? kOk : kOffTolerance;
  }
  value_row(job, r, status, number.begin, number.end, negated(t, text, from, number.begin), from);
}

// Share of two spans of time in their hull; 0 for a gold span that is reversed or not a number.
VSTAR_HD_CALL double iou(double begin, double end, const double* gold) {
  if (!(gold[0] < gold[1])) return 0;
  const double low = begin > gold[0] ? begin : gold[0], high = end < gold[1] ? end : gold[1];
  const double from = begin < gold[0] ? begin : gold[0], to = end > gold[1] ? end : gold[1];
  const double share = (high - low) / (to - from);
  return share > 0 ? share : 0;
}

// The first two times, or the last two; times in digits when there are two of them.
struct TimePair {
  Number first, second, third;
  int32_t count = 0;

  VSTAR_HD_CALL void add(const Number& n, bool last) {
    ++count;
    if (count == 1)
      first = n;
    else if (count == 2)
      second = n;
    else if (last)
      first = second, second = n;
    else if (count == 3)
      third = n;
  }
};

VSTAR_HD_CALL TimePair time_pair(const LabelTables& t, const uint8_t* text, int32_t from, int32_t end,
                                 bool last) {
  TimePair written, any;
  Number n;
  for (NumberReader reader(t, text, from, end, kTimeNumber); reader.next(&n);) {
    any.add(n, last);
    if (n.digits) written.add(n, last);
  }
  return written.count >= 2 ? written : any;
}

VSTAR_HD_CALL void interval_row(const LabelTables& t, const uint8_t* text, int32_t end, const ValueJob& job,
                                int32_t r) {
  int32_t from;
  bool last;
  double* values = job.values + 2 * static_cast<int64_t>(r);
  values[0] = values[1] = __builtin_nan("");
  job.score[r] = 0;
  if (!reading(t, text, end, job.pick, &from, &last)) return value_row(job, r, kNoSlot, -1, -1, false, -1);
  TimePair pair = time_pair(t, text, from, end, last);
  if (pair.count < 2) return value_row(job, r, kNoValue, -1, -1, false, from);
  if (pair.first.unit < 0 && !pair.first.clock) pair.first.unit = pair.second.unit;
  int32_t status = kOk, best = -1;
  const bool times =
      in_unit(pair.first, 0, &values[0]) & in_unit(pair.second, 0, &values[1]);  // unit 0: seconds
  if (!times) {
    values[0] = pair.first.value, values[1] = pair.second.value;
    status = kWrongUnit;
  } else if (!(values[0] < values[1])) {
    status = kWrongOrder;
  } else {
    for (int64_t i = job.offsets[r]; i < job.offsets[r + 1]; ++i) {
      const double share = iou(values[0], values[1], job.gold + 2 * i);
      if (share <= job.score[r]) continue;
      job.score[r] = share;
      best = static_cast<int32_t>(i - job.offsets[r]);
    }
    const NumberReader reader(t, text, from, end, kTimeNumber);
    if (!last && pair.count > 2 && reader.has_or(pair.second.end, pair.third.begin))
      status = kAmbiguous;
    else if (!(job.score[r] >= job.absolute[0] - 1e-9))
      status = kLowIou;
  }
  value_row(job, r, status, pair.first.begin, pair.second.end, negated(t, text, from, pair.first.begin),
            from);
  job.row(r)[kBest] = best;
}

VSTAR_HD_CALL void bad_row(const ValueJob& job, int32_t r, int32_t position) {
  const double none = __builtin_nan("");
  job.score[r] = 0;
  if (job.kind == kSequence)
    SequenceReader(job, r);  // no items
  else
    job.values[2 * static_cast<int64_t>(r)] = job.values[2 * static_cast<int64_t>(r) + 1] = none;
  value_row(job, r, kNoValue, -1, -1, false, -1);
  job.row(r)[kValueBadToken] = position;
}

// Fills row r. `ids` is null for rows of text.
VSTAR_HD_CALL void match_value(const LabelTables& t, const RowText& row, const ValueJob& job, int32_t r,
                               const TokenTable* tokens, const IdRows* ids) {
  if (row.bad >= 0) return bad_row(job, r, row.bad);
  if (job.kind == kSequence)
    sequence_row(t, row.text, row.end, job, r);
  else if (job.kind == kInterval)
    interval_row(t, row.text, row.end, job, r);
  else
    number_row(t, row.text, row.end, job, r);
  int32_t* out = job.row(r);
  if (out[kValueBytes] < 0) return;
  CharCounter chars(row.text, row.end), chars_again(row.text, row.end);
  if (ids == nullptr) {
    place(out + kValueBytes, out + kValueChars, nullptr, &chars, nullptr);
    if (job.kind == kSequence) place_items(job, r, chars_again, nullptr);
    return;
  }
  TokenFinder finder(*tokens, *ids, r), finder_again(*tokens, *ids, r);
  place(out + kValueBytes, out + kValueChars, out + kValueTokens, &chars, &finder);
  if (job.kind == kSequence) place_items(job, r, chars_again, &finder_again);
}

void match_values_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                      const ValueJob& job, int threads);
void match_values_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                          const ValueJob& job, int threads);
void match_values_cuda(const LabelTables& tables, const TextRows& texts, const ValueJob& job,
                       uintptr_t stream);
// `scratch` holds `workers` texts of `scratch_bytes` each: as many bytes as the longest row can have.
void match_values_ids_cuda(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                           const ValueJob& job, uint8_t* scratch, int64_t scratch_bytes, int32_t workers,
                           uintptr_t stream);
int32_t find_unit(const std::string& name);  // index of unit_at, or -1

}  // namespace vstar
