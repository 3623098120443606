// What one call of match_number, match_interval or match_sequence reads and writes, and where a value stands:
// in bytes, in characters and in tokens.
#pragma once

#include "label_rows.h"
#include "negation.h"

namespace vstar {

enum ValueStatus {
  kOk,
  kNoSlot,
  kNoValue,
  kWrongUnit,
  kAmbiguous,
  kOffTolerance,
  kWrongOrder,
  kLowIou,
  kWrongValue,
  kWrongLength
};
enum Pick { kPickFirst, kPickLast, kPickSlot };  // kPickSlot: first behind the literal, else last of the text
enum ValueKind { kNumber, kInterval, kSequence };

// Columns of a result row. Spans are begin, end; -1 for none.
enum ValueColumn {
  kStatus,
  kValueBytes,
  kDenied = 3,
  kValueFrom,
  kBest,  // which own interval overlaps most, or how many items a sequence has
  kValueTokens,
  kValueChars = 8,
  kValueBadToken = 10,  // position of the first id outside the vocabulary, or -1
  kValueRowInts
};

// Own values of the rows. Row r has gold[r] (a number), or gold[2 * i], gold[2 * i + 1] for the intervals i
// from offsets[r] to offsets[r + 1], or the sequence of labels[i] for those i.
struct ValueJob {
  const double* gold;
  const double* absolute;  // [rows] tolerances; for intervals absolute[0] is the least IoU
  const double* relative;
  const int32_t* units;  // [rows] unit_at, -1 none, -2 one that is not known
  const int64_t* offsets;
  int32_t* out;    // [rows, kValueRowInts]
  double* values;  // [rows, 2] number and error, or begin and end; not used by sequences
  double* score;   // [rows] IoU, or share in order
  const int32_t* labels;
  int32_t* items;   // [rows, most, kItemInts] the first items of a sequence
  int32_t* common;  // [labels + rows] scratch of sequences
  int32_t rows, pick, kind, most;

  VSTAR_HD int32_t* row(int32_t r) const { return out + static_cast<int64_t>(r) * kValueRowInts; }
};

VSTAR_HD_CALL void value_row(const ValueJob& job, int32_t r, int32_t status, int32_t begin, int32_t end,
                             bool denied, int32_t from) {
  int32_t* out = job.row(r);
  for (int32_t i = 0; i < kValueRowInts; ++i) out[i] = -1;
  out[kStatus] = status;
  out[kValueBytes] = begin;
  out[kValueBytes + 1] = end;
  out[kDenied] = denied;
  out[kValueFrom] = from;
}

// Counts the characters of a row up to byte after byte; the bytes must ascend.
struct CharCounter {
  const uint8_t* text;
  int32_t end, at = 0, count = 0;

  VSTAR_HD CharCounter(const uint8_t* text, int32_t end) : text(text), end(end) {}
  VSTAR_HD_CALL int32_t before(int32_t stop) {
    while (at < stop) {
      if (at + 8 <= stop && ascii8(at)) {
        at += 8;
        count += 8;
      } else {
        at = read_code_point(text, at, end).next;
        ++count;
      }
    }
    return count;
  }
  VSTAR_HD bool ascii8(int32_t p) const {
    uint8_t seen = 0;
    for (int i = 0; i < 8; ++i) seen |= text[p + i];
    return seen < 0x80;
  }
};

// Finds the tokens of a row that hold byte after byte; the bytes must ascend.
struct TokenFinder {
  const TokenTable& tokens;
  const IdRows& ids;
  int64_t begin;
  int32_t at = 0, used = 0;  // token `at` begins at byte `used`

  VSTAR_HD TokenFinder(const TokenTable& tokens, const IdRows& ids, int32_t r)
      : tokens(tokens), ids(ids), begin(ids.begin(r)) {}
  VSTAR_HD_CALL int32_t holding(int32_t byte) {
    for (int32_t size; used + (size = token_piece(tokens, ids.id(begin + at)).size) <= byte; ++at)
      used += size;
    return at;
  }
};

// Writes the characters and, for rows of ids, the tokens of the span of bytes at `bytes`.
VSTAR_HD_CALL void place(const int32_t* bytes, int32_t* characters, int32_t* in_tokens, CharCounter* chars,
                         TokenFinder* tokens) {
  for (int side = 0; side < 2; ++side) {
    characters[side] = chars->before(bytes[side]);
    if (tokens) in_tokens[side] = tokens->holding(bytes[side] - side) + side;
  }
}

}  // namespace vstar
