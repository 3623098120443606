// Word starts of a row, 64 bytes at a time:
//
//   text    T h e   s p i n - k i c k .        word   1 1 1 0 1 1 1 1 0 1 1 1 1 0
//                                              starts 1 . . . 1 . . . . 1 . . . .
//
// The letters of a word that starts there are folded by one OR, hashed by one multiplication and looked up in
// the filter; only what passes is written to the list. Bytes that are not ASCII, and words beside them,
// always pass.
#include "label_scan.h"

namespace vstar {
namespace {

constexpr int32_t kBlock = 64;

// Bit masks of the first 0 to 8 bytes.
constexpr uint64_t kKeep[kKeyBytes + 1] = {0,
                                           0xFF,
                                           0xFFFF,
                                           0xFFFFFF,
                                           0xFFFFFFFF,
                                           0xFFFFFFFFFF,
                                           0xFFFFFFFFFFFF,
                                           0xFFFFFFFFFFFFFF,
                                           0xFFFFFFFFFFFFFFFF};

uint64_t load_key(const uint8_t* text, int32_t at, int32_t length, int32_t end) {
  uint64_t key = 0;
  if (at + kKeyBytes <= end)
    std::memcpy(&key, text + at, kKeyBytes);
  else
    std::memcpy(&key, text + at, end - at);
  return (key | 0x2020202020202020ull) & kKeep[length];
}

// Bits from bit i of one word on, followed by those of the next word.
uint64_t window(uint64_t word, uint64_t next, int i) { return word >> i | next << 1 << (63 - i); }

// Letters and digits at the beginning of `run`, at most kKeyBytes.
int run_length(uint64_t run) { return __builtin_ctzll(~run | 1ull << kKeyBytes); }

}  // namespace

void LabelScan::collect(const uint8_t* text, int32_t start, int32_t end) {
  const int32_t origin = start > 0 ? start - 1 : 0;  // one byte more tells whether a word goes on at `start`
  const int32_t size = end - origin;
  const size_t blocks = (static_cast<size_t>(size) + kBlock - 1) / kBlock;
  if (word_.size() < blocks + 1) word_.resize(blocks + 1), high_.resize(blocks + 1);
  if (starts_.size() < static_cast<size_t>(size) + 1) starts_.resize(size + 1);
  masks_(text + origin, size, word_.data(), high_.data());
  word_[blocks] = high_[blocks] = 0;
  stop_ = starts_.data();
  for (size_t block = 0; block < blocks; ++block)
    collect_block(text, origin + static_cast<int32_t>(block) * kBlock, block, end,
                  block == 0 && start > origin ? ~1ull : ~0ull);
}

void LabelScan::collect_block(const uint8_t* text, int32_t base, size_t block, int32_t end, uint64_t keep) {
  const uint64_t word = word_[block], high = high_[block];
  const uint64_t word_before = word << 1 | (block ? word_[block - 1] >> 63 : 0);
  const uint64_t high_before = high << 1 | (block ? high_[block - 1] >> 63 : 0);
  uint64_t starts = word & ~word_before & keep;
  uint64_t others = high & ~word_before & keep;
  if (t_.has_odd_roots) others |= odd_roots(text, base, end) & ~word_before & keep;
  const bool plain = (high | high_before | (high_[block + 1] & 0xFF) | others) == 0;
  const uint64_t after = word_[block + 1];
  if (plain) {
    stop_ = collect_words(text, base, end, starts, word, after, stop_);
    return;
  }
  for (uint64_t all = starts | others; all; all &= all - 1) {
    const int i = __builtin_ctzll(all);
    const int length = run_length(window(word, after, i));
    const bool cut = length < kKeyBytes && (window(high, high_[block + 1], i) >> length & 1);
    if ((others | high_before) >> i & 1 || cut)
      *stop_++ = {base + i, 0, 0};
    else
      stop_ = collect_words(text, base, end, 1ull << i, word, after, stop_);
  }
}

// Appends the words at `starts` that the filter lets through. Branch-free: one that it rejects is overwritten
// by the next.
Start* LabelScan::collect_words(const uint8_t* text, int32_t base, int32_t end, uint64_t starts,
                                uint64_t word, uint64_t after, Start* stop) const {
  const uint32_t* filter = t_.filter;
  const int shift = t_.filter_shift;
  for (; starts; starts &= starts - 1) {
    const int i = __builtin_ctzll(starts);
    const int length = run_length(window(word, after, i));
    const uint64_t key = load_key(text, base + i, length, end);
    const uint64_t hash = hash_key(key) >> shift;
    *stop = {base + i, length, key};
    stop += filter[hash >> 5] >> (hash & 31) & 1;
  }
  return stop;
}

uint64_t LabelScan::odd_roots(const uint8_t* text, int32_t base, int32_t end) const {
  uint64_t found = 0;
  for (int32_t at = base; at < base + kBlock && at < end; ++at)
    found |= static_cast<uint64_t>(text[at] < 0x80 && t_.odd_roots[text[at]]) << (at - base);
  return found;
}

}  // namespace vstar
