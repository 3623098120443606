// label_match on the CPU: one thread owns a run of rows; ids are first spread into the bytes they stand for.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "label_rows.h"
#include "label_scan.h"
#include "negation.h"

namespace vstar {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;  // below this a thread costs more than it saves
constexpr int64_t kBytesPerToken = 4;         // about
constexpr int32_t kRowsPerTurn = 64;

int32_t search_start(const LabelTables& t, const uint8_t* text, int32_t end) {
  if (t.after_length == 0) return 0;
  const uint16_t first = symbol_of(t.after[0]);
  for (int32_t p = end - 1; p >= 0; --p) {
    if (text[p] < 0x80 && symbol_of(t.pages[text[p]]) != first) continue;
    const int32_t stop = literal_end(t, text, p, end);
    if (stop >= 0) return stop;
  }
  return -1;
}

struct RowText {
  const uint8_t* text;
  int32_t end, bad;  // bad: position of the first id outside the vocabulary, or -1
};

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
    const int32_t start = row.bad >= 0 ? -1 : search_start(t_, row.text, row.end);
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

// Spreads the ids of one row into `bytes`, which keeps kEntryBytes more than a row can need.
class Speller {
 public:
  Speller(const TokenTable& tokens, const IdRows& ids) : tokens_(tokens), ids_(ids) {}

  RowText spell(int32_t r) {
    count_ = ids_.length(r);
    const int64_t begin = ids_.begin(r);
    const size_t most = static_cast<size_t>(count_) * kEntryBytes + kEntryBytes;
    if (bytes_.size() < most) bytes_.resize(most);
    if (ends_.size() < static_cast<size_t>(count_)) ends_.resize(count_);
    return ids_.wide ? spell(static_cast<const int64_t*>(ids_.ids) + begin)
                     : spell(static_cast<const int32_t*>(ids_.ids) + begin);
  }

  // Of the row spelt last: tokens that hold the first and the last byte of a span, as a span of tokens.
  void token_span(const int32_t* bytes, int32_t* tokens) const {
    const auto begin = ends_.begin(), end = begin + count_;
    tokens[0] = static_cast<int32_t>(std::upper_bound(begin, end, bytes[0]) - begin);
    tokens[1] = static_cast<int32_t>(std::lower_bound(begin, end, bytes[1]) - begin) + 1;
  }

 private:
  template <class Id>
  RowText spell(const Id* ids) {
    uint8_t* to = bytes_.data();
    const auto vocabulary = static_cast<uint64_t>(tokens_.count);
    for (int32_t i = 0; i < count_; ++i) {
      if (static_cast<uint64_t>(static_cast<int64_t>(ids[i])) >= vocabulary) return {nullptr, 0, i};
      const uint8_t* entry = tokens_.entries + static_cast<int64_t>(ids[i]) * kEntryBytes;
      std::memcpy(to, entry, kEntryBytes);
      if (entry[kInlineBytes] == kLongToken)
        to = spell_long(to, ids[i], count_ - i);
      else
        to += entry[kInlineBytes];
      ends_[i] = static_cast<int32_t>(to - bytes_.data());
    }
    return {bytes_.data(), static_cast<int32_t>(to - bytes_.data()), -1};
  }

  uint8_t* spell_long(uint8_t* to, int64_t id, int32_t left) {
    const TokenPiece piece = token_piece(tokens_, id);
    const size_t used = to - bytes_.data();
    const size_t most = used + piece.size + static_cast<size_t>(left) * kEntryBytes + kEntryBytes;
    if (bytes_.size() < most) bytes_.resize(most + most / 2);
    std::memcpy(bytes_.data() + used, piece.bytes, piece.size);
    return bytes_.data() + used + piece.size;
  }

  TokenTable tokens_;
  IdRows ids_;
  std::vector<uint8_t> bytes_;
  std::vector<int32_t> ends_;  // [count_] bytes of the row up to the end of each token
  int32_t count_ = 0;
};

// Runs work(low, high) over all rows on as many threads as pay, each with a worker of its own made by `make`.
template <class Make>
void over_rows(int32_t rows, int64_t bytes, int threads, Make make) {
  const auto useful = static_cast<int>(std::min<int64_t>(threads, bytes / kBytesPerThread));
  std::atomic<int32_t> turn{0};
  const auto work = [&] {
    auto row = make();
    for (int32_t low; (low = turn.fetch_add(kRowsPerTurn)) < rows;)
      for (int32_t r = low; r < std::min(low + kRowsPerTurn, rows); ++r) row(r);
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < useful; ++i) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace

void label_match_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                     const LabelOut& out, int threads) {
  int64_t bytes = 0;
  for (const std::string_view& text : texts) bytes += static_cast<int64_t>(text.size());
  over_rows(out.rows, bytes, threads, [&] {
    return [&, worker = Worker(tables, out)](int32_t r) mutable {
      const auto* text = reinterpret_cast<const uint8_t*>(texts[r].data());
      worker.match({text, static_cast<int32_t>(texts[r].size()), -1}, r);
    };
  });
}

void label_match_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                         const LabelOut& out, int threads) {
  int64_t count = 0;
  for (int32_t r = 0; r < out.rows; ++r) count += ids.length(r);
  over_rows(out.rows, count * kBytesPerToken, threads, [&] {
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
