// Nfa -> Dfa over bytes: subset construction with a short cut for sets of one state; trimming.
#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "constrain_compile.h"

namespace vstar {

int32_t Nfa::state() {
  head.push_back(-1);
  epsilon_head.push_back(-1);
  return static_cast<int32_t>(head.size()) - 1;
}

void Nfa::edge(int32_t from, uint8_t low, uint8_t high, int32_t target) {
  edges.push_back({{low, high, target}, head[from]});
  head[from] = static_cast<int32_t>(edges.size()) - 1;
}

void Nfa::epsilon(int32_t from, int32_t target) {
  epsilons.push_back({target, epsilon_head[from]});
  epsilon_head[from] = static_cast<int32_t>(epsilons.size()) - 1;
}

int32_t Nfa::insert(const Dag& dag, int32_t start_state, int32_t accept_state) {
  const auto base = static_cast<int32_t>(head.size());
  head.resize(base + dag.states(), -1);
  epsilon_head.resize(base + dag.states(), -1);
  for (int32_t s = 0; s < dag.states(); ++s) {
    for (const DagEdge* e = dag.begin(s); e != dag.end(s);) {
      const DagEdge* last = e;
      while (last + 1 != dag.end(s) && last[1].target == e->target && last[1].label == last->label + 1)
        ++last;
      edge(base + s, static_cast<uint8_t>(e->label), static_cast<uint8_t>(last->label), base + e->target);
      e = last + 1;
    }
    if (dag.accepts(s)) epsilon(base + s, accept_state);
  }
  return base + start_state;
}

namespace {

using Set = std::vector<int32_t>;

struct SetHash {
  size_t operator()(const Set& set) const {
    uint64_t h = set.size();
    for (int32_t s : set) h = (h ^ static_cast<uint64_t>(s)) * 0x9E3779B97F4A7C15u + (h >> 31);
    return h;
  }
};

class Subsets {
 public:
  explicit Subsets(const Nfa& nfa) : nfa_(nfa), single_(nfa.head.size(), -1), seen_(nfa.head.size(), 0) {}

  Dfa run() {
    dfa_.start = target_of(nfa_.start);
    for (int32_t i = 0; i < dfa_.states(); ++i) expand(i);
    return std::move(dfa_);
  }

 private:
  bool matters(int32_t s) const { return nfa_.head[s] >= 0 || s == nfa_.accept; }

  // States reached without a byte, of those only the ones that have edges or accept.
  Set closure(const Set& from) {
    ++turn_;
    Set stack(from), reached;
    for (int32_t s : stack) seen_[s] = turn_;
    while (!stack.empty()) {
      const int32_t s = stack.back();
      stack.pop_back();
      if (matters(s)) reached.push_back(s);
      for (int32_t e = nfa_.epsilon_head[s]; e >= 0; e = nfa_.epsilons[e].next) {
        const int32_t to = nfa_.epsilons[e].target;
        if (seen_[to] == turn_) continue;
        seen_[to] = turn_;
        stack.push_back(to);
      }
    }
    std::sort(reached.begin(), reached.end());
    return reached;
  }

  int32_t target_of(int32_t from) { return nfa_.epsilon_head[from] < 0 ? alone(from) : target_of(Set{from}); }

  int32_t alone(int32_t s) {
    if (single_[s] < 0) single_[s] = open(&s, 1);
    return single_[s];
  }

  int32_t target_of(const Set& from) {
    if (from.size() == 1 && nfa_.epsilon_head[from[0]] < 0) return alone(from[0]);
    const Set set = closure(from);
    if (set.size() == 1) return alone(set[0]);
    const auto known = many_.find(set);
    if (known != many_.end()) return known->second;
    return many_.emplace(set, open(set.data(), set.size())).first->second;
  }

  // Parts that read the same text in many ways have exponentially many sets.
  int32_t open(const int32_t* set, size_t size) {
    if (members_.size() + size > 4 * static_cast<size_t>(kMostStates))
      throw std::invalid_argument("the template reads the same text in too many ways; set its parts apart");
    members_.insert(members_.end(), set, set + size);
    member_first_.push_back(members_.size());
    dfa_.accept.push_back(std::binary_search(set, set + size, nfa_.accept));
    return dfa_.states() - 1;
  }

  void expand(int32_t index) {
    edges_.clear();
    for (size_t i = member_first_[index]; i < member_first_[index + 1]; ++i)
      for (int32_t e = nfa_.head[members_[i]]; e >= 0; e = nfa_.edges[e].next)
        edges_.push_back(nfa_.edges[e].edge);
    std::sort(edges_.begin(), edges_.end(),
              [](const ByteEdge& a, const ByteEdge& b) { return a.low < b.low; });
    bool apart = true;
    for (size_t i = 1; i < edges_.size(); ++i) apart &= edges_[i - 1].high < edges_[i].low;
    if (apart)
      for (const ByteEdge& e : edges_) add(e.low, e.high, target_of(e.target));
    else
      sweep();
    dfa_.first.push_back(static_cast<int32_t>(dfa_.edges.size()));
  }

  // Overlapping edges: between two neighbouring borders the set of targets is constant.
  void sweep() {
    std::vector<int32_t> borders;
    for (const ByteEdge& e : edges_) {
      borders.push_back(e.low);
      borders.push_back(e.high + 1);
    }
    std::sort(borders.begin(), borders.end());
    borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      Set targets;
      for (const ByteEdge& e : edges_)
        if (e.low <= borders[i] && e.high >= borders[i]) targets.push_back(e.target);
      if (targets.empty()) continue;
      std::sort(targets.begin(), targets.end());
      targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
      add(static_cast<uint8_t>(borders[i]), static_cast<uint8_t>(borders[i + 1] - 1), target_of(targets));
    }
  }

  void add(uint8_t low, uint8_t high, int32_t target) {
    const bool fresh = dfa_.first.back() == static_cast<int32_t>(dfa_.edges.size());
    if (!fresh && dfa_.edges.back().target == target && dfa_.edges.back().high + 1 == low)
      dfa_.edges.back().high = high;
    else
      dfa_.edges.push_back({low, high, target});
  }

  const Nfa& nfa_;
  Dfa dfa_;
  std::vector<int32_t> members_;         // of the sets, one behind the other
  std::vector<size_t> member_first_{0};  // [states + 1]
  std::vector<int32_t> single_, seen_;
  std::unordered_map<Set, int32_t, SetHash> many_;
  std::vector<ByteEdge> edges_;
  int32_t turn_ = 0;
};

}  // namespace

Dfa determinise(const Nfa& nfa) { return Subsets(nfa).run(); }

Dfa trim(Dfa dfa) {
  const int32_t states = dfa.states();
  std::vector<uint8_t> useful(dfa.accept);
  for (bool changed = true; changed;) {
    changed = false;
    for (int32_t s = states - 1; s >= 0; --s)
      for (int32_t e = dfa.first[s]; !useful[s] && e < dfa.first[s + 1]; ++e)
        if (useful[dfa.edges[e].target]) useful[s] = changed = true;
  }
  if (!useful[dfa.start]) throw std::invalid_argument("the template has no answer");
  if (std::find(useful.begin(), useful.end(), 0) == useful.end()) return dfa;
  std::vector<int32_t> number(states, -1);
  Dfa out;
  for (int32_t s = 0; s < states; ++s)
    if (useful[s]) {
      number[s] = out.states();
      out.accept.push_back(dfa.accept[s]);
    }
  for (int32_t s = 0; s < states; ++s) {
    if (!useful[s]) continue;
    for (int32_t e = dfa.first[s]; e < dfa.first[s + 1]; ++e)
      if (useful[dfa.edges[e].target])
        out.edges.push_back({dfa.edges[e].low, dfa.edges[e].high, number[dfa.edges[e].target]});
    out.first.push_back(static_cast<int32_t>(out.edges.size()));
  }
  out.start = number[dfa.start];
  return out;
}

}  // namespace vstar
