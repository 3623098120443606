// Rows on the CPU: token ids spread into the bytes they stand for, and rows shared out to threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "label_rows.h"
#include "threads.h"

namespace vstar {

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

  // Of the row spelt last: the token that holds a byte.
  int32_t token_at(int32_t byte) const {
    const auto begin = ends_.begin();
    return static_cast<int32_t>(std::upper_bound(begin, begin + count_, byte) - begin);
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
  constexpr int64_t kBytesPerThread = 1 << 17;  // below this a thread costs more than it saves
  constexpr int32_t kRowsPerTurn = 64;
  const auto useful = static_cast<int>(std::min<int64_t>(threads, bytes / kBytesPerThread));
  std::atomic<int32_t> turn{0};
  const auto work = [&] {
    auto row = make();
    for (int32_t low; (low = turn.fetch_add(kRowsPerTurn)) < rows;)
      for (int32_t r = low; r < std::min(low + kRowsPerTurn, rows); ++r) row(r);
  };
  on_threads(useful, work);
}

// Bytes of all rows, about.
inline int64_t bytes_of(const std::vector<std::string_view>& texts) {
  int64_t bytes = 0;
  for (const std::string_view& text : texts) bytes += static_cast<int64_t>(text.size());
  return bytes;
}

inline int64_t bytes_of(const IdRows& ids, int32_t rows) {
  constexpr int64_t kBytesPerToken = 4;
  int64_t count = 0;
  for (int32_t r = 0; r < rows; ++r) count += ids.length(r);
  return count * kBytesPerToken;
}

inline RowText row_text(const std::string_view& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), static_cast<int32_t>(text.size()), -1};
}

}  // namespace vstar
