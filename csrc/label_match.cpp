// label_match on the CPU: one thread owns a run of rows and walks each row's bytes in order.
#include "label_match.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace vstar {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;  // below this a thread costs more than it saves
constexpr int32_t kRowsPerTurn = 64;

int32_t search_start(const LabelTables& t, const uint8_t* text, int32_t end) {
  if (t.after_length == 0) return 0;
  for (int32_t p = end - 1; p >= 0; --p) {
    const int32_t stop = literal_end(t, text, p, end);
    if (stop >= 0) return stop;
  }
  return -1;
}

void match_row(const LabelTables& t, const LabelRows& rows, int32_t r) {
  const uint8_t* text = rows.text + rows.offsets[r];
  const auto end = static_cast<int32_t>(rows.offsets[r + 1] - rows.offsets[r]);
  uint32_t* which = rows.which ? rows.which + static_cast<int64_t>(r) * rows.which_words : nullptr;
  const auto seen = [which](int32_t label) {
    if (which) which[label >> 5] |= 1u << (label & 31);
  };
  int32_t first_begin = -1, first_end = -1, last_begin = -1, last_end = -1, longest = 0;
  bool outside = false;
  const int32_t start = search_start(t, text, end);
  bool inside_word = start > 0 && word_before(t, text, start);
  for (int32_t p = start, next; start >= 0 && p < end; p = next) {
    const Char c = read_char(t, text, p, end);
    next = c.next;
    const Ends ends = inside_word ? Ends{0, 0} : match_from(t, text, c, end, rows.own[r], seen);
    inside_word = is_word(c.code);
    if (ends.own) {
      if (first_begin < 0) first_begin = p, first_end = ends.own;
      last_begin = p, last_end = ends.own;
      outside |= ends.own == ends.longest && ends.own > longest;
    }
    longest = std::max(longest, ends.longest);
  }
  const int32_t inside = first_begin >= 0 && !outside;
  const int32_t row[kRowInts] = {first_begin, first_end, last_begin, last_end, start, inside};
  std::copy_n(row, kRowInts, rows.out + static_cast<int64_t>(r) * kRowInts);
}

}  // namespace

void label_match_cpu(const LabelTables& tables, const LabelRows& rows, int threads) {
  const int64_t bytes = rows.rows ? rows.offsets[rows.rows] - rows.offsets[0] : 0;
  const auto useful = static_cast<int>(std::min<int64_t>(threads, bytes / kBytesPerThread));
  std::atomic<int32_t> turn{0};
  const auto work = [&] {
    for (int32_t low; (low = turn.fetch_add(kRowsPerTurn)) < rows.rows;)
      for (int32_t r = low; r < std::min(low + kRowsPerTurn, rows.rows); ++r) match_row(tables, rows, r);
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < useful; ++i) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace vstar
