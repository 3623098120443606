// TokenAutomaton -> arena block: drops states that reach no answer, puts dense states first, measures
// distances.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "constrain.h"
#include "constrain_compile.h"

namespace vstar {
namespace {

constexpr int32_t kFar = 0xFFFF;

// Calls seen(next) for the next state of each edge, and the fallback of a dense state once.
template <class Seen>
void each_next(const TokenAutomaton& a, int32_t s, const TokenAutomaton::Dense* dense, Seen seen) {
  for (int32_t e = a.first[s]; e < a.first[s + 1]; ++e)
    if (a.next[e] >= 0) seen(a.next[e]);
  if (dense && dense->fallback >= 0) seen(dense->fallback);
}

struct Packer {
  TokenAutomaton& a;
  const Vocab& vocab;
  std::vector<int32_t> dense_of{}, dist{}, number{};
  int32_t dense = 0, states = 0;

  const TokenAutomaton::Dense* dense_row(int32_t s) const {
    return dense_of[s] < 0 ? nullptr : &a.dense[dense_of[s]];
  }

  // Sweeps from the last state back, until nothing changes: states found late are mostly nearer the end.
  void measure() {
    dense_of.assign(a.states(), -1);
    for (size_t d = 0; d < a.dense.size(); ++d) dense_of[a.dense[d].state] = static_cast<int32_t>(d);
    dist.assign(a.states(), kFar);
    for (bool changed = true; changed;) {
      changed = false;
      for (int32_t s = a.states() - 1; s >= 0; --s) {
        int32_t best = a.accept[s] ? 0 : kFar;
        each_next(a, s, dense_row(s), [&](int32_t to) { best = std::min(best, dist[to] + 1); });
        changed |= best < dist[s];
        dist[s] = std::min(dist[s], best);
      }
    }
    if (dist[a.start] >= kFar) throw std::invalid_argument("no token sequence spells an answer");
  }

  // Edges into states that reach no answer go; what then cannot be reached goes with them.
  void renumber() {
    for (TokenAutomaton::Dense& row : a.dense)
      if (dist[row.fallback] >= kFar) forget(row);
    std::vector<uint8_t> reached(a.states(), 0);
    std::vector<int32_t> stack{a.start};
    reached[a.start] = 1;
    while (!stack.empty()) {
      const int32_t s = stack.back();
      stack.pop_back();
      each_next(a, s, dense_row(s), [&](int32_t to) {
        if (reached[to] || dist[to] >= kFar) return;
        reached[to] = 1;
        stack.push_back(to);
      });
    }
    number.assign(a.states(), -1);
    for (const TokenAutomaton::Dense& row : a.dense)
      if (reached[row.state]) number[row.state] = dense++;
    states = dense;
    for (int32_t s = 0; s < a.states(); ++s)
      if (reached[s] && dense_of[s] < 0) number[s] = states++;
  }

  // Leaves of a dense row only the tokens that have an edge of their own.
  void forget(TokenAutomaton::Dense& row) {
    std::fill(row.bits.begin(), row.bits.end(), 0);
    for (int32_t e = a.first[row.state]; e < a.first[row.state + 1]; ++e)
      if (a.next[e] < 0 || dist[a.next[e]] < kFar) row.bits[a.tokens[e] >> 5] |= 1u << (a.tokens[e] & 31);
    row.fallback = -1;
  }

  int32_t target(int32_t next) const { return next < 0 ? next : number[next]; }

  std::string write() {
    std::vector<int32_t> order(states), first{0}, next, fallback;
    std::vector<Reach> reach;
    std::vector<uint32_t> bits;
    std::vector<int32_t> tokens;
    tokens.reserve(a.tokens.size());
    next.reserve(a.tokens.size());
    first.reserve(states + 1);
    reach.reserve(states);
    for (int32_t s = 0; s < a.states(); ++s)
      if (number[s] >= 0) order[number[s]] = s;
    for (int32_t s : order) {
      int32_t need = 0;
      for (int32_t e = a.first[s]; e < a.first[s + 1]; ++e) {
        if (a.next[e] >= 0 && dist[a.next[e]] >= kFar) {
          if (const auto* row = dense_row(s)) clear(*row, a.tokens[e]);
          continue;
        }
        tokens.push_back(a.tokens[e]);
        next.push_back(target(a.next[e]));
        if (a.next[e] >= 0) need = std::max(need, dist[a.next[e]] + 1);
      }
      if (const auto* row = dense_row(s)) {
        if (row->fallback >= 0) need = std::max(need, dist[row->fallback] + 1);
        bits.insert(bits.end(), row->bits.begin(), row->bits.end());
        fallback.push_back(row->fallback < 0 ? kLost : target(row->fallback));
      }
      first.push_back(static_cast<int32_t>(tokens.size()));
      reach.push_back({static_cast<uint16_t>(dist[s]), static_cast<uint16_t>(std::min(need, kFar))});
    }
    return block(first, reach, tokens, next, bits, fallback);
  }

  void clear(const TokenAutomaton::Dense& row, int32_t token) {
    const_cast<TokenAutomaton::Dense&>(row).bits[token >> 5] &= ~(1u << (token & 31));
  }

  template <class T>
  static int32_t append(std::string& block, const T* values, size_t count) {
    block.resize((block.size() + 15) / 16 * 16);
    const size_t at = block.size();
    if (at + count * sizeof(T) > 0x7FFFFFFF)
      throw std::invalid_argument("the automaton is larger than 2 GiB");
    block.append(reinterpret_cast<const char*>(values), count * sizeof(T));
    return static_cast<int32_t>(at);
  }

  std::string block(const std::vector<int32_t>& first, const std::vector<Reach>& reach,
                    const std::vector<int32_t>& tokens, const std::vector<int32_t>& next,
                    const std::vector<uint32_t>& bits, const std::vector<int32_t>& fallback) {
    ArenaHeader h{};
    std::string out(sizeof h, '\0');
    h.magic = kArenaMagic;
    h.version = kArenaVersion;
    h.vocabulary = vocab.vocabulary;
    h.states = states;
    h.edges = static_cast<int32_t>(tokens.size());
    h.dense = dense;
    h.eos_count = vocab.eos_count;
    h.narrow = vocab.vocabulary <= 0x10000;
    h.start = number[a.start];
    h.first = append(out, first.data(), first.size());
    h.reach = append(out, reach.data(), reach.size());
    if (h.narrow) {
      const std::vector<uint16_t> half(tokens.begin(), tokens.end());
      h.tokens = append(out, half.data(), half.size());
    } else {
      h.tokens = append(out, tokens.data(), tokens.size());
    }
    h.next = append(out, next.data(), next.size());
    h.bits = append(out, bits.data(), bits.size());
    h.fallback = append(out, fallback.data(), fallback.size());
    h.eos = append(out, vocab.eos, static_cast<size_t>(vocab.eos_count));
    out.resize((out.size() + 15) / 16 * 16);
    h.bytes = static_cast<int32_t>(out.size());
    std::memcpy(out.data(), &h, sizeof h);
    h.checksum = arena_checksum(out);
    std::memcpy(out.data(), &h, sizeof h);
    return out;
  }
};

}  // namespace

std::string pack(TokenAutomaton automaton, const Vocab& vocab) {
  Packer packer{automaton, vocab};
  packer.measure();
  packer.renumber();
  return packer.write();
}

std::string compile_program(std::string_view program, const Vocab& vocab, const Encoder& encode) {
  const Dfa dfa = minimise(trim(determinise(read_program(program))));
  return pack(token_product(dfa, vocab, encode, nullptr, 0), vocab);
}

std::string compile_sequences(std::string_view program, const std::vector<std::vector<int32_t>>& sequences,
                              const Vocab& vocab) {
  const int32_t* ends = vocab.eos + vocab.eos_count;
  for (const auto& sequence : sequences)
    for (int32_t token : sequence)
      if (token < 0 || token >= vocab.vocabulary || std::find(vocab.eos, ends, token) != ends)
        throw std::invalid_argument("token " + std::to_string(token) + " cannot stand in an answer");
  std::vector<std::vector<int32_t>> sorted(sequences);
  std::sort(sorted.begin(), sorted.end());
  Dag dag;
  SortedBuilder builder(dag);
  for (const auto& sequence : sorted) builder.add(sequence.data(), sequence.size());
  const int32_t start = builder.finish();
  // Without a program the tail stands alone, behind an automaton that accepts at once.
  Dfa dfa;
  if (program.empty()) {
    dfa.accept.push_back(1);
    dfa.first.push_back(0);
  } else {
    dfa = minimise(trim(determinise(read_program(program))));
  }
  for (int32_t s = 0; s < dfa.states(); ++s)
    if (dfa.accept[s] && dfa.first[s + 1] > dfa.first[s])
      throw std::invalid_argument("what stands before the canonical part must have a clear end");
  return pack(token_product(dfa, vocab, nullptr, &dag, start), vocab);
}

}  // namespace vstar
