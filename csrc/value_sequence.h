// match_sequence: the labels that stand in a row, left to right, against the row's own in their order.
//
//   "spin kick, kick then jump"    read as  spin kick | kick | jump
//
// At each place the longest label counts, and none inside another. The share in order is the longest common
// subsequence, made item by item in one row of counts.
#pragma once

#include "value_job.h"

namespace vstar {

// Columns of an item of a sequence. Spans are begin, end; -1 for none.
enum ItemColumn { kItemLabel, kItemBytes, kItemTokens = 3, kItemChars = 5, kItemInts = 7 };

// The items of one row against its own `count` labels.
class SequenceReader {
 public:
  VSTAR_HD SequenceReader(const ValueJob& job, int32_t r)
      : own_(job.labels + job.offsets[r]),
        common_(job.common + job.offsets[r] + r),
        items_(job.items + static_cast<int64_t>(r) * job.most * kItemInts),
        size_(static_cast<int32_t>(job.offsets[r + 1] - job.offsets[r])),
        most_(job.most) {
    for (int32_t i = 0; i <= size_; ++i) common_[i] = 0;
    for (int32_t i = 0; i < most_ * kItemInts; ++i) items_[i] = -1;
  }

  VSTAR_HD_CALL void read(const LabelTables& t, const uint8_t* text, int32_t from, int32_t end) {
    for (int32_t p = from; p < end;) {
      const Char c = read_char(t, text, p, end);
      Ends ends;
      if (t.root_child[symbol_of(c.code)] != 0 && !word_before(t, text, p))
        ends = match_from(t, text, c, end, -1, [](int32_t) {});
      if (ends.longest) {
        add(ends.label, p, ends.longest);
        denied = denied || negated(t, text, from, p);
      }
      p = ends.longest ? ends.longest : c.next;
    }
  }

  VSTAR_HD_CALL int32_t status() const {
    if (count == 0) return kNoValue;
    if (count != size_) return kWrongLength;
    if (same_) return kOk;
    for (int32_t i = 0; i < size_; ++i) {
      int32_t wanted = 0, found = 0;
      for (int32_t k = 0; k < size_; ++k) {
        wanted += own_[k] == own_[i];
        found += items_[k * kItemInts + kItemLabel] == own_[i];
      }
      if (wanted != found) return kWrongValue;
    }
    return kWrongOrder;
  }

  VSTAR_HD double score() const {
    const int32_t longer = count > size_ ? count : size_;
    return count ? static_cast<double>(common_[size_]) / longer : 0;
  }

  int32_t count = 0, begin = -1, stop = -1;
  bool denied = false;

 private:
  VSTAR_HD void add(int32_t label, int32_t from, int32_t to) {
    same_ = same_ && count < size_ && own_[count] == label;
    if (count < most_) {
      int32_t* item = items_ + count * kItemInts;
      item[kItemLabel] = label;
      item[kItemBytes] = from;
      item[kItemBytes + 1] = to;
    }
    int32_t diagonal = 0;
    for (int32_t i = 1; i <= size_; ++i) {
      const int32_t above = common_[i];
      if (own_[i - 1] == label)
        common_[i] = diagonal + 1;
      else if (common_[i - 1] > above)
        common_[i] = common_[i - 1];
      diagonal = above;
    }
    if (count++ == 0) begin = from;
    stop = to;
  }

  const int32_t* own_;
  int32_t* common_;
  int32_t* items_;
  int32_t size_, most_;
  bool same_ = true;
};

VSTAR_HD_CALL void sequence_row(const LabelTables& t, const uint8_t* text, int32_t end, const ValueJob& job,
                                int32_t r) {
  SequenceReader reader(job, r);
  const int32_t from = last_literal(t, text, end);
  if (from >= 0) reader.read(t, text, from, end);
  job.score[r] = reader.score();
  value_row(job, r, from < 0 ? kNoSlot : reader.status(), reader.begin, reader.stop, reader.denied, from);
  job.row(r)[kBest] = reader.count;
}

// Writes the characters and, for rows of ids, the tokens of each item of row r.
VSTAR_HD_CALL void place_items(const ValueJob& job, int32_t r, CharCounter chars, TokenFinder* tokens) {
  int32_t* item = job.items + static_cast<int64_t>(r) * job.most * kItemInts;
  for (int32_t i = 0; i < job.most && item[kItemLabel] >= 0; ++i, item += kItemInts)
    place(item + kItemBytes, item + kItemChars, item + kItemTokens, &chars, tokens);
}

}  // namespace vstar
