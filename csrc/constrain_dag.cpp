// Acyclic automata: states are made bottom-up and looked up by content, so that equal ones are one.
#include <algorithm>
#include <stdexcept>

#include "constrain_compile.h"

namespace vstar {
namespace {

constexpr uint32_t kPrime = 0x9E3779B1u;

uint32_t hash_state(const DagEdge* edges, int32_t count, bool accept) {
  uint64_t h = accept ? 0x243F6A8885A308D3u : 0x13198A2E03707344u;
  for (int32_t i = 0; i < count; ++i) {
    h ^= static_cast<uint64_t>(static_cast<uint32_t>(edges[i].label)) << 32 |
         static_cast<uint32_t>(edges[i].target);
    h *= 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
  }
  return static_cast<uint32_t>(h ^ (h >> 32)) * kPrime;
}

constexpr uint8_t kMaxRadix = 10;

}  // namespace

Dag::Dag() : first_{0}, slots_(1 << 10, -1) {}

bool Dag::equal(int32_t s, const DagEdge* edges, int32_t count, bool accept) const {
  if (first_[s + 1] - first_[s] != count || (accept_[s] != 0) != accept) return false;
  return std::equal(edges, edges + count, begin(s),
                    [](DagEdge a, DagEdge b) { return a.label == b.label && a.target == b.target; });
}

void Dag::grow() {
  slots_.assign(slots_.size() * 2, -1);
  const auto mask = static_cast<uint32_t>(slots_.size() - 1);
  for (int32_t s = 0; s < states(); ++s) {
    uint32_t at = hashes_[s] & mask;
    while (slots_[at] >= 0) at = (at + 1) & mask;
    slots_[at] = s;
  }
}

int32_t Dag::add(const DagEdge* edges, int32_t count, bool accept) {
  const uint32_t hash = hash_state(edges, count, accept);
  const auto mask = static_cast<uint32_t>(slots_.size() - 1);
  uint32_t at = hash & mask;
  for (; slots_[at] >= 0; at = (at + 1) & mask)
    if (hashes_[slots_[at]] == hash && equal(slots_[at], edges, count, accept)) return slots_[at];
  const int32_t s = states();
  slots_[at] = s;
  edges_.insert(edges_.end(), edges, edges + count);
  first_.push_back(static_cast<int32_t>(edges_.size()));
  accept_.push_back(accept);
  hashes_.push_back(hash);
  if (static_cast<size_t>(s) * 2 > slots_.size()) grow();
  return s;
}

void SortedBuilder::freeze(size_t depth) {
  for (; depth_ > depth; --depth_) {
    Open& open = open_[depth_];
    int32_t state = open.link;
    if (state < 0) state = dag_.add(open.edges.data(), static_cast<int32_t>(open.edges.size()), open.accept);
    open_[depth_ - 1].edges.push_back({open.label, state});
    open.edges.clear();
    open.accept = false;
    open.link = -1;
  }
}

int32_t SortedBuilder::finish() {
  freeze(0);
  return dag_.add(open_[0].edges.data(), static_cast<int32_t>(open_[0].edges.size()), open_[0].accept);
}

// One way to write numbers with `digits` leading digits, seen from somewhere inside it.
struct RangeBuilder::Bound {
  int32_t digits;
  bool tight_low, tight_high;
  const std::string* low;
  const std::string* high;
};

RangeBuilder::RangeBuilder(Dag& dag, NumberLayout layout) : dag_(dag), layout_(std::move(layout)) {
  for (uint8_t item : layout_.tail)
    if (item <= kMaxRadix) units_ *= item;
  for (uint8_t item : layout_.tail)
    if (item > kMaxRadix) alphabet_.push_back(item);
  for (uint8_t digit = '0'; digit <= '9'; ++digit) alphabet_.push_back(digit);
  std::sort(alphabet_.begin(), alphabet_.end());
  alphabet_.erase(std::unique(alphabet_.begin(), alphabet_.end()), alphabet_.end());
}

std::string RangeBuilder::write(int64_t n) const {
  int64_t rest = n % units_, scale = units_;
  std::string text = std::to_string(n / units_);
  if (text.size() < static_cast<size_t>(layout_.lead)) text.insert(0, layout_.lead - text.size(), '0');
  for (uint8_t item : layout_.tail) {
    if (item > kMaxRadix) {
      text.push_back(static_cast<char>(item));
      continue;
    }
    scale /= item;
    text.push_back(static_cast<char>('0' + rest / scale));
    rest %= scale;
  }
  return text;
}

// Digits come after digits: at `position` every way still active has either a digit or a literal byte.
int32_t RangeBuilder::build(std::vector<Bound>& active, int32_t position) {
  uint64_t key = static_cast<uint64_t>(position);
  bool memo = true;
  for (const Bound& b : active) {
    key |= 1ull << (8 + b.digits);
    memo &= !b.tight_low && !b.tight_high;
  }
  if (memo)
    for (const auto& [known, state] : free_)
      if (known == key) return state;
  std::vector<DagEdge> edges;
  bool accept = false;
  std::vector<Bound> on;
  for (uint8_t byte : alphabet_) {
    on.clear();
    for (const Bound& b : active) {
      const int32_t at = position - b.digits, size = b.digits + static_cast<int32_t>(layout_.tail.size());
      if (position == size) {
        accept = true;
        continue;
      }
      const uint8_t item = at < 0 ? kMaxRadix : layout_.tail[at];
      const bool fits = item > kMaxRadix ? byte == item : byte >= '0' && byte < '0' + item;
      const auto low = static_cast<uint8_t>((*b.low)[position]),
                 high = static_cast<uint8_t>((*b.high)[position]);
      if (!fits || (b.tight_low && byte < low) || (b.tight_high && byte > high)) continue;
      on.push_back({b.digits, b.tight_low && byte == low, b.tight_high && byte == high, b.low, b.high});
    }
    if (!on.empty()) edges.push_back({byte, build(on, position + 1)});
  }
  const int32_t state = dag_.add(edges.data(), static_cast<int32_t>(edges.size()), accept);
  if (memo) free_.emplace_back(key, state);
  return state;
}

int32_t RangeBuilder::range(int64_t low, int64_t high) {
  std::vector<std::string> ends;
  std::vector<Bound> active;
  const auto shortest = static_cast<int32_t>(write(low).size() - write(0).size()) + layout_.lead;
  const auto longest = static_cast<int32_t>(write(high).size() - write(0).size()) + layout_.lead;
  ends.reserve(2 * (longest - shortest + 1));
  int64_t least = units_;  // least number with one more digit than the shortest
  for (int32_t d = 1; d < shortest; ++d) least *= 10;
  for (int32_t digits = shortest; digits <= longest; ++digits, least *= 10) {
    const int64_t from = digits == shortest ? low : least;
    const int64_t to = digits == longest ? high : least * 10 - 1;
    ends.push_back(write(from));
    ends.push_back(write(to));
    active.push_back({digits, true, true, &ends[ends.size() - 2], &ends.back()});
  }
  return build(active, 0);
}

}  // namespace vstar
