// Free text up to the first of some triggers, as an automaton whose states are triples of
//   how much of a trigger stands behind us (Aho-Corasick)  x  place inside a UTF-8 character  x  characters
//   read.
#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <tuple>

#include "constrain_compile.h"

namespace vstar {
namespace {

// Places inside a UTF-8 character: 0 between two, 1 to 3 that many continuation bytes to come, then the four
// leads whose second byte is limited.
int32_t utf8_next(int32_t place, uint8_t b) {
  const auto in = [b](uint8_t low, uint8_t high) { return b >= low && b <= high; };
  switch (place) {
    case 0:
      if (b < 0x80) return 0;
      if (in(0xC2, 0xDF)) return 1;
      if (b == 0xE0) return 4;
      if (b == 0xED) return 5;
      if (in(0xE1, 0xEF)) return 2;
      if (b == 0xF0) return 6;
      if (b == 0xF4) return 7;
      return in(0xF1, 0xF3) ? 3 : -1;
    case 4:
      return in(0xA0, 0xBF) ? 1 : -1;
    case 5:
      return in(0x80, 0x9F) ? 1 : -1;
    case 6:
      return in(0x90, 0xBF) ? 2 : -1;
    case 7:
      return in(0x80, 0x8F) ? 2 : -1;
    default:
      return in(0x80, 0xBF) ? place - 1 : -1;
  }
}

struct Triggers {
  std::vector<std::array<int32_t, 256>> next;
  std::vector<int32_t> hit;  // characters of the trigger that is complete here, 0 for none

  explicit Triggers(const std::vector<std::string>& words) {
    add();
    for (const std::string& word : words) insert(word);
    link();
  }

  int32_t add() {
    next.emplace_back();
    next.back().fill(-1);
    hit.push_back(0);
    return static_cast<int32_t>(next.size()) - 1;
  }

  void insert(const std::string& word) {
    int32_t at = 0, characters = 0;
    for (char c : word) {
      const auto b = static_cast<uint8_t>(c);
      characters += (b & 0xC0) != 0x80;
      if (next[at][b] < 0) {
        const int32_t made = add();
        next[at][b] = made;
      }
      at = next[at][b];
    }
    hit[at] = characters;
  }

  void link() {
    std::vector<int32_t> fail(next.size(), 0), queue;
    for (int32_t& to : next[0]) {
      if (to < 0)
        to = 0;
      else
        queue.push_back(to);
    }
    for (size_t i = 0; i < queue.size(); ++i) {
      const int32_t at = queue[i];
      if (hit[at] == 0) hit[at] = hit[fail[at]];
      for (int32_t b = 0; b < 256; ++b) {
        const int32_t to = next[at][b], other = next[fail[at]][b];
        if (to < 0) {
          next[at][b] = other;
        } else {
          fail[to] = other;
          queue.push_back(to);
        }
      }
    }
  }
};

using Key = std::tuple<int32_t, int32_t, int32_t>;  // trigger state, UTF-8 place, characters

struct TextBuilder {
  Nfa& nfa;
  const TextSpec& text;
  int32_t accept;
  Triggers triggers;
  bool counts = false;
  int32_t ceiling = 0;  // characters at which the count stops; -1: counting up to `least` is enough
  std::map<Key, int32_t> made{};
  std::vector<Key> queue{};

  int32_t state(const Key& key) {
    const auto [at, fresh] = made.emplace(key, 0);
    if (fresh) {
      at->second = nfa.state();
      queue.push_back(key);
    }
    return at->second;
  }

  // Where byte `b` leads: -1 nowhere.
  int32_t target(const Key& key, uint8_t b) {
    const auto [trigger, place, count] = key;
    const int32_t inside = utf8_next(place, b);
    if (inside < 0) return -1;
    const int32_t at = triggers.next[trigger][b];
    int32_t characters = count + (place == 0);
    if (triggers.hit[at]) {
      const int32_t before = characters - triggers.hit[at];
      const bool fits = before >= text.least && (text.most < 0 || before <= text.most);
      return fits || !counts ? accept : -1;
    }
    if (text.most >= 0 && characters > ceiling) return -1;
    if (text.most < 0) characters = std::min(characters, ceiling);
    return state({at, inside, characters});
  }

  void expand(const Key& key) {
    const int32_t from = made[key];
    for (int32_t low = 0; low < 256;) {
      const int32_t to = target(key, static_cast<uint8_t>(low));
      int32_t high = low;
      while (high < 255 && target(key, static_cast<uint8_t>(high + 1)) == to) ++high;
      if (to >= 0) nfa.edge(from, static_cast<uint8_t>(low), static_cast<uint8_t>(high), to);
      low = high + 1;
    }
    const auto [trigger, place, count] = key;
    if (text.until.empty() && place == 0 && count >= text.least) nfa.epsilon(from, accept);
  }
};

}  // namespace

void add_text(Nfa& nfa, const TextSpec& text, int32_t from, int32_t accept) {
  TextBuilder builder{nfa, text, accept, Triggers(text.until)};
  int32_t longest = 0;
  for (int32_t hit : builder.triggers.hit) longest = std::max(longest, hit);
  builder.counts = text.most >= 0 || text.least > 0;
  builder.ceiling = builder.counts ? (text.most < 0 ? text.least : text.most) + longest : 0;
  nfa.epsilon(from, builder.state({0, 0, 0}));
  for (size_t i = 0; i < builder.queue.size(); ++i) {
    const Key key = builder.queue[i];
    builder.expand(key);
  }
}

}  // namespace vstar
