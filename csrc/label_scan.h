// One row on the CPU: the starts of its words in bits, the few of them that may begin a label, and what they
// begin.
#pragma once

#include <cstring>
#include <vector>

#include "label_match.h"
#include "word_masks.h"

namespace vstar {

// A place where a label may begin: behind its first word `key`, or anything when key_bytes is 0.
struct Start {
  int32_t at, key_bytes;
  uint64_t key;
};

class LabelScan {
 public:
  explicit LabelScan(const LabelTables& tables) : t_(tables), masks_(word_masks()) {}

  // Calls found(begin, ends) for every place from byte `start` on where a label begins, in order, and
  // seen(label) for each label there.
  template <class Seen, class Hit>
  void run(const uint8_t* text, int32_t start, int32_t end, int32_t own, Seen seen, Hit found) {
    collect(text, start, end);
    for (const Start* s = starts_.data(); s != stop_; ++s) {
      const Ends ends = s->key_bytes
                            ? match_on(t_, text, enter(t_, s->key), s->at + s->key_bytes, end, own, seen)
                            : anything(text, s->at, end, own, seen);
      if (ends.longest) found(s->at, ends);
    }
  }

 private:
  template <class Seen>
  Ends anything(const uint8_t* text, int32_t at, int32_t end, int32_t own, Seen seen) const {
    const Char c = read_char(t_, text, at, end);
    if (t_.root_child[symbol_of(c.code)] == 0 || word_before(t_, text, at)) return {};
    return match_from(t_, text, c, end, own, seen);
  }

  void collect(const uint8_t* text, int32_t start, int32_t end);
  void collect_block(const uint8_t* text, int32_t base, size_t block, int32_t end, uint64_t keep);
  uint64_t odd_roots(const uint8_t* text, int32_t base, int32_t end) const;
  Start* collect_words(const uint8_t* text, int32_t base, int32_t end, uint64_t starts, uint64_t word,
                       uint64_t after, Start* stop) const;

  LabelTables t_;
  WordMasks masks_;
  std::vector<uint64_t> word_, high_;
  std::vector<Start> starts_;
  Start* stop_ = nullptr;
};

}  // namespace vstar
