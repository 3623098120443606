// label_match on the CPU: one thread owns a run of rows; ids are first spread into the bytes they stand for.
#include <algorithm>
#include <cstring>

#include "label_scan.h"
#include "negation.h"
#include "spell_rows.h"

namespace vstar {
namespace {

bool is_ascii(const uint8_t* text, int32_t size) {
  uint64_t seen = 0;
  int32_t p = 0;
  for (uint64_t eight; p + 8 <= size; p += 8) {
    std::memcpy(&eight, text + p, 8);
    seen |= eight;
  }
  for (; p < size; ++p) seen |= static_cast<uint64_t>(text[p]) << 56;
  return (seen & 0x8080808080808080ull) == 0;
}

// Writes how many characters there are before each of four byte positions.
void count_characters(const uint8_t* text, int32_t end, const int32_t* bytes, int32_t* chars) {
  if (is_ascii(text, *std::max_element(bytes, bytes + 4))) {
    std::copy_n(bytes, 4, chars);
    return;
  }
  int32_t order[4] = {0, 1, 2, 3}, count = 0, p = 0;
  std::sort(order, order + 4, [bytes](int32_t a, int32_t b) { return bytes[a] < bytes[b]; });
  for (int32_t side : order) {
    for (; p < bytes[side]; p = read_code_point(text, p, end).next) ++count;
    chars[side] = count;
  }
}

class Worker {
 public:
  Worker(const LabelTables& tables, const LabelOut& out) : t_(tables), job_(out), scan_(tables) {}

  // Fills the columns that hold for any row.
  void match(const RowText& row, int32_t r) {
    int32_t* out = job_.out + static_cast<int64_t>(r) * kRowInts;
    std::fill_n(out, kRowInts, -1);
    out[kBadToken] = row.bad;
    out[kLength] = row.end;
    out[kFlags] = 0;
    const int32_t start = row.bad >= 0 ? -1 : last_literal(t_, row.text, row.end);
    out[kSearchedFrom] = start;
    if (start < 0) return;
    uint32_t* which = job_.which ? job_.which + static_cast<int64_t>(r) * job_.which_words : nullptr;
    const auto seen = [which](int32_t label) {
      if (which) which[label >> 5] |= 1u << (label & 31);
    };
    bool outside = false, denied = false;
    int32_t longest = 0;
    scan_.run(row.text, start, row.end, job_.own[r], seen, [&](int32_t begin, const Ends& ends) {
      if (ends.own) {
        if (out[kFirst] < 0) out[kFirst] = begin, out[kFirst + 1] = ends.own;
        out[kLast] = begin, out[kLast + 1] = ends.own;
        outside |= ends.own == ends.longest && ends.own > longest;
        denied = denied || (job_.negation && negated(t_, row.text, start, begin));
      }
      longest = std::max(longest, ends.longest);
    });
    if (out[kFirst] < 0) return;
    out[kFlags] = (outside ? 0 : kInsideLonger) | (denied ? kNegated : 0);
    count_characters(row.text, row.end, out + kFirst, out + kFirstChar);
  }

 private:
  LabelTables t_;
  LabelOut job_;
  LabelScan scan_;
};

}  // namespace

void label_match_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                     const LabelOut& out, int threads) {
  over_rows(out.rows, bytes_of(texts), threads, [&] {
    return [&, worker = Worker(tables, out)](int32_t r) mutable { worker.match(row_text(texts[r]), r); };
  });
}

void label_match_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                         const LabelOut& out, int threads) {
  over_rows(out.rows, bytes_of(ids, out.rows), threads, [&] {
    return [&, worker = Worker(tables, out), speller = Speller(tokens, ids)](int32_t r) mutable {
      worker.match(speller.spell(r), r);
      int32_t* row = out.out + static_cast<int64_t>(r) * kRowInts;
      if (row[kFirst] < 0) return;
      speller.token_span(row + kFirst, row + kFirstToken);
      speller.token_span(row + kLast, row + kLastToken);
    };
  });
}

}  // namespace vstar
