// Dfa -> smallest Dfa, in one pass for states outside loops.
#include <algorithm>
#include <unordered_map>

#include "constrain_compile.h"

namespace vstar {
namespace {

struct KeyHash {
  size_t operator()(const std::vector<int32_t>& key) const {
    uint64_t h = key.size();
    for (int32_t k : key) h = (h ^ static_cast<uint64_t>(k)) * 0x9E3779B97F4A7C15u + (h >> 31);
    return h;
  }
};

// Strongly connected components are visited sinks first. A state outside loops is looked up by content among
// the finished ones; the states of a loop are split until none differ (Moore).
class Minimiser {
 public:
  explicit Minimiser(const Dfa& dfa)
      : in_(dfa), class_(dfa.states(), -1), order_(dfa.states(), -1), low_(dfa.states(), 0) {}

  Dfa run() {
    slots_.assign(1024, -1);
    visit(in_.start);
    out_.start = class_[in_.start];
    return std::move(out_);
  }

 private:
  struct Frame {
    int32_t state, edge;
  };

  void visit(int32_t root) {
    std::vector<Frame> frames{{root, in_.first[root]}};
    enter(root);
    while (!frames.empty()) {
      Frame& frame = frames.back();
      const int32_t s = frame.state;
      if (frame.edge < in_.first[s + 1]) {
        const int32_t to = in_.edges[frame.edge++].target;
        if (order_[to] < 0) {
          enter(to);
          frames.push_back({to, in_.first[to]});
        } else if (class_[to] < 0) {
          low_[s] = std::min(low_[s], order_[to]);
        }
        continue;
      }
      frames.pop_back();
      if (!frames.empty()) low_[frames.back().state] = std::min(low_[frames.back().state], low_[s]);
      if (low_[s] == order_[s]) component(s);
    }
  }

  void enter(int32_t s) {
    order_[s] = low_[s] = clock_++;
    stack_.push_back(s);
  }

  void component(int32_t root) {
    if (stack_.back() == root && !loops(root)) {
      stack_.pop_back();
      class_[root] = find_or_add(merged(root), in_.accept[root]);
      return;
    }
    size_t at = stack_.size();
    while (stack_[at - 1] != root) --at;
    --at;
    const std::vector<int32_t> members(stack_.begin() + static_cast<int64_t>(at), stack_.end());
    stack_.resize(at);
    refine(members);
  }

  bool loops(int32_t s) const {
    for (int32_t e = in_.first[s]; e < in_.first[s + 1]; ++e)
      if (in_.edges[e].target == s) return true;
    return false;
  }

  // Edges of a state with classes for targets, neighbours with the same target joined.
  const std::vector<ByteEdge>& merged(int32_t s) {
    edges_.clear();
    for (int32_t e = in_.first[s]; e < in_.first[s + 1]; ++e) {
      const ByteEdge& edge = in_.edges[e];
      const int32_t to = class_[edge.target];
      if (!edges_.empty() && edges_.back().target == to && edges_.back().high + 1 == edge.low)
        edges_.back().high = edge.high;
      else
        edges_.push_back({edge.low, edge.high, to});
    }
    return edges_;
  }

  static uint32_t hash_of(const std::vector<ByteEdge>& edges, uint8_t accept) {
    uint64_t h = accept + 1;
    for (const ByteEdge& e : edges) {
      h ^= static_cast<uint64_t>(static_cast<uint32_t>(e.target)) << 16 | static_cast<uint64_t>(e.low) << 8 |
           e.high;
      h *= 0x9E3779B97F4A7C15u;
      h ^= h >> 29;
    }
    return static_cast<uint32_t>(h ^ (h >> 32));
  }

  int32_t find_or_add(const std::vector<ByteEdge>& edges, uint8_t accept) {
    const uint32_t hash = hash_of(edges, accept);
    const auto mask = static_cast<uint32_t>(slots_.size() - 1);
    uint32_t at = hash & mask;
    for (; slots_[at] >= 0; at = (at + 1) & mask)
      if (hashes_[slots_[at]] == hash && same(slots_[at], edges, accept)) return slots_[at];
    const int32_t made = add(edges, accept, hash);
    slots_[at] = made;
    if (static_cast<size_t>(made) * 2 > slots_.size()) grow();
    return made;
  }

  bool same(int32_t s, const std::vector<ByteEdge>& edges, uint8_t accept) const {
    const int32_t count = out_.first[s + 1] - out_.first[s];
    return out_.accept[s] == accept && count == static_cast<int32_t>(edges.size()) &&
           std::equal(edges.begin(), edges.end(), out_.edges.begin() + out_.first[s],
                      [](const ByteEdge& a, const ByteEdge& b) {
                        return a.low == b.low && a.high == b.high && a.target == b.target;
                      });
  }

  int32_t add(const std::vector<ByteEdge>& edges, uint8_t accept, uint32_t hash) {
    out_.edges.insert(out_.edges.end(), edges.begin(), edges.end());
    out_.first.push_back(static_cast<int32_t>(out_.edges.size()));
    out_.accept.push_back(accept);
    hashes_.push_back(hash);
    return out_.states() - 1;
  }

  // At least half of the slots stay free: a loop adds many states at once.
  void grow() {
    size_t size = slots_.size() * 2;
    while (size < 2 * hashes_.size()) size *= 2;
    slots_.assign(size, -1);
    const auto mask = static_cast<uint32_t>(slots_.size() - 1);
    for (int32_t s = 0; s < out_.states(); ++s) {
      uint32_t at = hashes_[s] & mask;
      while (slots_[at] >= 0) at = (at + 1) & mask;
      slots_[at] = s;
    }
  }

  // Blocks of a loop's states are numbered from the next free class on, so that both kinds of target compare.
  void refine(const std::vector<int32_t>& members) {
    const int32_t base = out_.states();
    for (int32_t s : members) class_[s] = base;
    std::vector<int32_t> now(members.size()), example;
    for (size_t blocks = 1, before = 0; blocks > before;) {
      std::unordered_map<std::vector<int32_t>, int32_t, KeyHash> numbers;
      example.clear();
      for (size_t i = 0; i < members.size(); ++i) {
        const auto [at, fresh] = numbers.emplace(key_of(members[i]), static_cast<int32_t>(example.size()));
        if (fresh) example.push_back(members[i]);
        now[i] = base + at->second;
      }
      for (size_t i = 0; i < members.size(); ++i) class_[members[i]] = now[i];
      before = blocks;
      blocks = std::max(example.size(), blocks);
    }
    for (int32_t s : example) {
      merged(s);
      add(edges_, in_.accept[s], hash_of(edges_, in_.accept[s]));
    }
    if (2 * hashes_.size() > slots_.size()) grow();
  }

  std::vector<int32_t> key_of(int32_t s) {
    std::vector<int32_t> key{class_[s], in_.accept[s]};
    for (const ByteEdge& e : merged(s)) {
      key.push_back(e.low << 8 | e.high);
      key.push_back(e.target);
    }
    return key;
  }

  const Dfa& in_;
  Dfa out_;
  std::vector<int32_t> class_, order_, low_, stack_, slots_;
  std::vector<uint32_t> hashes_;
  std::vector<ByteEdge> edges_;
  int32_t clock_ = 0;
};

}  // namespace

Dfa minimise(const Dfa& dfa) { return Minimiser(dfa).run(); }

}  // namespace vstar
