// label_match on the CPU: one thread owns a run of rows; ids are first spread into the bytes they stand for.
#include <algorithm>
#include <cstring>

#include "label_scan.h"
#include "negation.h"
#include "spell_rows.h"
#include "token_scan.h"

namespace vstar {
namespace {

bool is_ascii(const TokenText&, int32_t) { return false; }  // its hints have told

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
template <class Text>
void count_characters(const Text& text, int32_t end, const int32_t* bytes, int32_t* chars) {
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

// The columns of one row, filled while its labels are found in order.
class RowResult {
 public:
  RowResult(const LabelTables& tables, const LabelOut& job, int32_t r)
      : t_(tables), job_(job), out_(job.out + static_cast<int64_t>(r) * kRowInts), own_(job.own[r]) {
    which_ = job.which ? job.which + static_cast<int64_t>(r) * job.which_words : nullptr;
    std::fill_n(out_, kRowInts, -1);
  }

  int32_t own() const { return own_; }
  int32_t start() const { return start_; }

  // Whether there is anything to search.
  bool begin(int32_t bad, int32_t length, int32_t start) {
    out_[kBadToken] = bad;
    out_[kLength] = length;
    out_[kFlags] = 0;
    out_[kSearchedFrom] = start_ = start;
    return start >= 0;
  }

  void see(int32_t label) const {
    if (which_) which_[label >> 5] |= 1u << (label & 31);
  }

  template <class Text>
  void add(const Text& text, int32_t begin, const Ends& ends) {
    if (ends.own) {
      if (out_[kFirst] < 0) out_[kFirst] = begin, out_[kFirst + 1] = ends.own;
      out_[kLast] = begin, out_[kLast + 1] = ends.own;
      outside_ |= ends.own == ends.longest && ends.own > longest_;
      denied_ = denied_ || (job_.negation && negated(t_, text, start_, begin));
    }
    longest_ = std::max(longest_, ends.longest);
  }

  // Whether the own label was found; then its character columns are filled too.
  template <class Text>
  bool finish(const Text& text, int32_t end, bool ascii) {
    if (out_[kFirst] < 0) return false;
    out_[kFlags] = (outside_ ? 0 : kInsideLonger) | (denied_ ? kNegated : 0);
    if (ascii)
      std::copy_n(out_ + kFirst, 4, out_ + kFirstChar);
    else
      count_characters(text, end, out_ + kFirst, out_ + kFirstChar);
    return true;
  }

  // Fills the token columns by token(byte), the token that holds a byte.
  template <class Token>
  void place(Token token) {
    for (int side = 0; side < 4; side += 2) {
      out_[kFirstToken + side] = token(out_[kFirst + side]);
      out_[kFirstToken + side + 1] = token(out_[kFirst + side + 1] - 1) + 1;
    }
  }

 private:
  const LabelTables& t_;
  const LabelOut& job_;
  int32_t* out_;
  uint32_t* which_;
  int32_t own_, start_ = 0, longest_ = 0;
  bool outside_ = false, denied_ = false;
};

// Rows as text.
class TextWorker {
 public:
  TextWorker(const LabelTables& tables, const LabelOut& out) : t_(tables), job_(out), scan_(tables) {}

  // Whether the own label was found.
  bool match(const RowText& row, RowResult& result) {
    const int32_t start = row.bad >= 0 ? -1 : last_literal(t_, row.text, row.end);
    if (!result.begin(row.bad, row.end, start)) return false;
    scan_.run(
        row.text, start, row.end, result.own(), [&](int32_t label) { result.see(label); },
        [&](int32_t begin, const Ends& ends) { result.add(row.text, begin, ends); });
    return result.finish(row.text, row.end, false);
  }

  bool match(const RowText& row, int32_t r) {
    RowResult result(t_, job_, r);
    return match(row, result);
  }

 private:
  LabelTables t_;
  LabelOut job_;
  LabelScan scan_;
};

// Rows of ids, spread into bytes first.
class SpellWorker {
 public:
  SpellWorker(const LabelTables& tables, const LabelOut& out, const TokenTable& tokens, const IdRows& ids)
      : t_(tables), job_(out), texts_(tables, out), speller_(tokens, ids) {}

  void match(int32_t r) {
    RowResult result(t_, job_, r);
    if (texts_.match(speller_.spell(r), result))
      result.place([this](int32_t byte) { return speller_.token_at(byte); });
  }

 private:
  LabelTables t_;
  LabelOut job_;
  TextWorker texts_;
  Speller speller_;
};

// Rows of ids whose hints say which bytes to read.
class HintWorker {
 public:
  HintWorker(const LabelTables& tables, const LabelOut& out, const TokenTable& tokens,
             const TokenHints& hints, const IdRows& ids)
      : t_(tables), job_(out), tokens_(tokens), hints_(hints), ids_(ids), scan_(token_scan()) {}

  void match(int32_t r) {
    RowResult result(t_, job_, r);
    const int32_t count = ids_.length(r);
    masks_.fit(count);
    const int32_t bad = scan_({row_ids(r), hints_.hint, count, tokens_.count, ids_.wide != 0}, masks_);
    const int32_t end = bad >= 0 || count == 0 ? 0 : masks_.ends[count - 1];
    const TokenText text(tokens_, ids_, r);
    if (!result.begin(bad, end, bad >= 0 ? -1 : search_start(text, count, end))) return;
    each_label(text, count, result, end);
    if (result.finish(text, end, masks_.ascii))
      result.place([&](int32_t byte) { return text.token_at(byte); });
  }

 private:
  const void* row_ids(int32_t r) const {
    const int64_t begin = ids_.begin(r);
    if (ids_.wide) return static_cast<const int64_t*>(ids_.ids) + begin;
    return static_cast<const int32_t*>(ids_.ids) + begin;
  }

  int32_t begin_of(int32_t i) const { return i ? masks_.ends[i - 1] : 0; }

  int32_t search_start(const TokenText& text, int32_t count, int32_t end) {
    first_ = 0;
    if (t_.after_length == 0) return 0;
    for (int32_t word = (count - 1) >> 6; word >= 0; --word)
      for (uint64_t left = masks_.literal[word]; left;) {
        const int32_t i = word * 64 + 63 - __builtin_clzll(left);
        left &= ~(1ull << (i & 63));
        text.load(i, begin_of(i));
        const int32_t stop = literal_in_token(t_, text, begin_of(i), masks_.ends[i] - begin_of(i), end);
        if (stop < 0) continue;
        first_ = i;
        return stop;
      }
    return -1;
  }

  void each_label(const TokenText& text, int32_t count, RowResult& result, int32_t end) const {
    const int32_t start = result.start();
    for (int32_t word = first_ >> 6; word < (count + 63) >> 6; ++word) {
      uint64_t left = masks_.label[word];
      if (word == first_ >> 6) left &= ~0ull << (first_ & 63);
      for (; left; left &= left - 1) {
        const int32_t i = word * 64 + __builtin_ctzll(left);
        match_token(
            t_, hints_, text, i, begin_of(i), start, end, result.own(),
            [&](int32_t label) { result.see(label); },
            [&](int32_t begin, const Ends& ends) { result.add(text, begin, ends); });
      }
    }
  }

  LabelTables t_;
  LabelOut job_;
  TokenTable tokens_;
  TokenHints hints_;
  IdRows ids_;
  TokenScan scan_;
  TokenMasks masks_;
  int32_t first_ = 0;  // token that the literal begins in
};

}  // namespace

void label_match_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                     const LabelOut& out, int threads) {
  over_rows(out.rows, bytes_of(texts), threads, [&] {
    return [&, worker = TextWorker(tables, out)](int32_t r) mutable { worker.match(row_text(texts[r]), r); };
  });
}

void label_match_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const TokenHints& hints,
                         const IdRows& ids, const LabelOut& out, int threads) {
  const int64_t bytes = bytes_of(ids, out.rows);
  if (hints.hint == nullptr)
    over_rows(out.rows, bytes, threads, [&] {
      return [worker = SpellWorker(tables, out, tokens, ids)](int32_t r) mutable { worker.match(r); };
    });
  else
    over_rows(out.rows, bytes, threads, [&] {
      return [worker = HintWorker(tables, out, tokens, hints, ids)](int32_t r) mutable { worker.match(r); };
    });
}

}  // namespace vstar
