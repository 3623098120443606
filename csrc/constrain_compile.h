// The steps from a template to a token automaton, in the order they run:
//
//   program bytes --read_program--> Nfa --determinise, trim, minimise--> Dfa over bytes
//   Dfa x vocabulary trie --token_product--> TokenAutomaton --pack--> arena block
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace vstar {

#ifndef VSTAR_MOST_STATES
#define VSTAR_MOST_STATES (1 << 24)  // the fuzzer asks for fewer
#endif
constexpr int32_t kMostStates = VSTAR_MOST_STATES;  // of an Nfa, and a quarter of what its sets may hold

// ---- vocabulary: a trie over the tokens' bytes, breadth first, in one block ----

struct VocabHeader {
  int32_t magic, bytes, vocabulary, nodes, token_count, eos_count;
  int32_t first_child, byte, first_token, tokens, eos, root;
};
constexpr int32_t kVocabMagic = 0x31565356;  // "VSV1"

struct Vocab {
  int32_t vocabulary, nodes, eos_count;
  const int32_t* first_child;  // [nodes + 1]
  const uint8_t* byte;         // [nodes] byte that leads here; ascending among siblings
  const int32_t* first_token;  // [nodes + 1]
  const int32_t* tokens;       // [token_count] tokens whose bytes end at a node
  const int32_t* eos;          // [eos_count]
  const int32_t* root;         // [256] child of the root, or 0

  explicit Vocab(const uint8_t* base);
  int32_t child(int32_t node, uint8_t b) const;
};

// tokens[i] are the bytes of token i, empty for a token that is no text.
std::string build_vocab(const std::vector<std::string_view>& tokens, const std::vector<int32_t>& eos,
                        int32_t vocabulary);

// ---- acyclic automata with equal states merged as they are made ----

struct DagEdge {
  int32_t label, target;
};

class Dag {
 public:
  Dag();
  int32_t add(const DagEdge* edges, int32_t count, bool accept);
  int32_t states() const { return static_cast<int32_t>(accept_.size()); }
  bool accepts(int32_t s) const { return accept_[s] != 0; }
  const DagEdge* begin(int32_t s) const { return edges_.data() + first_[s]; }
  const DagEdge* end(int32_t s) const { return edges_.data() + first_[s + 1]; }

 private:
  bool equal(int32_t s, const DagEdge* edges, int32_t count, bool accept) const;
  void grow();
  std::vector<int32_t> first_;
  std::vector<DagEdge> edges_;
  std::vector<uint8_t> accept_;
  std::vector<uint32_t> hashes_;
  std::vector<int32_t> slots_;
};

// Builds the minimal automaton of sequences that come in ascending order.
class SortedBuilder {
 public:
  explicit SortedBuilder(Dag& dag) : dag_(dag) { open_.emplace_back(); }
  // `target` >= 0: the last label leads to that state instead of to an accepting one of its own.
  template <class Label>
  void add(const Label* sequence, size_t length, int32_t target = -1);
  int32_t finish();

 private:
  struct Open {
    std::vector<DagEdge> edges;
    int32_t label = 0, link = -1;
    bool accept = false;
  };
  void freeze(size_t depth);
  Dag& dag_;
  std::vector<Open> open_;
  size_t depth_ = 0;
};

template <class Label>
void SortedBuilder::add(const Label* sequence, size_t length, int32_t target) {
  size_t same = 0;
  while (same < length && same < depth_ && open_[same + 1].label == static_cast<int32_t>(sequence[same]))
    ++same;
  freeze(same);
  while (depth_ < length) {
    if (open_.size() == ++depth_) open_.emplace_back();
    open_[depth_].label = static_cast<int32_t>(sequence[depth_ - 1]);
  }
  if (target < 0)
    open_[depth_].accept = true;
  else
    open_[depth_].link = target;
}

// Numbers n / units written with at least `lead` decimal digits, then `tail`: digits of a radix up to 10, or
// (values above 10) literal bytes. 75 as mm:ss has lead 2, tail {':', 6, 10}: "01:15".
struct NumberLayout {
  int32_t lead = 1;
  std::vector<uint8_t> tail;
};

class RangeBuilder {
 public:
  RangeBuilder(Dag& dag, NumberLayout layout);
  // All n in [low, high], 0 <= low <= high; each ends in an accepting state.
  int32_t range(int64_t low, int64_t high);
  std::string write(int64_t n) const;

 private:
  struct Bound;
  int32_t build(std::vector<Bound>& active, int32_t position);
  Dag& dag_;
  NumberLayout layout_;
  int64_t units_ = 1;
  std::vector<uint8_t> alphabet_;
  std::vector<std::pair<uint64_t, int32_t>> free_;  // memo of states without bounds
};

// ---- automata over bytes ----

struct ByteEdge {
  uint8_t low, high;
  int32_t target;
};

class Nfa {
 public:
  int32_t state();
  void edge(int32_t from, uint8_t low, uint8_t high, int32_t target);
  void epsilon(int32_t from, int32_t target);
  // Copies a Dag; its accepting states lead to `accept`. Returns the state of `start`.
  int32_t insert(const Dag& dag, int32_t start, int32_t accept);

  struct Edge {
    ByteEdge edge;
    int32_t next;
  };
  struct Epsilon {
    int32_t target, next;
  };
  std::vector<int32_t> head, epsilon_head;
  std::vector<Edge> edges;
  std::vector<Epsilon> epsilons;
  int32_t start = 0, accept = 0;
};

struct Dfa {
  std::vector<int32_t> first{0};  // [states + 1]
  std::vector<ByteEdge> edges;    // ascending, disjoint
  std::vector<uint8_t> accept;
  int32_t start = 0;
  int32_t states() const { return static_cast<int32_t>(accept.size()); }
};

Nfa read_program(std::string_view program);
Dfa determinise(const Nfa& nfa);
Dfa trim(Dfa dfa);             // states that reach an accepting one
Dfa minimise(const Dfa& dfa);  // equal up to isomorphic loops
// Adds "text up to the first of `until`" between two states of the Nfa; see constrain_text.cpp.
struct TextSpec {
  std::vector<std::string> until;
  int32_t least = 0, most = -1;  // characters before the trigger; -1: any number
};
void add_text(Nfa& nfa, const TextSpec& text, int32_t from, int32_t accept);

// ---- automata over tokens ----

struct TokenAutomaton {
  struct Dense {
    int32_t state, fallback;
    std::vector<uint32_t> bits;
  };
  std::vector<int32_t> first{0};
  std::vector<int32_t> tokens, next;
  std::vector<uint8_t> accept;
  std::vector<Dense> dense;  // ascending by state
  int32_t start = 0;
  int32_t states() const { return static_cast<int32_t>(accept.size()); }
};

// Canonical tokens of byte strings; an empty list where there are none.
using Encoder = std::function<std::vector<std::vector<int32_t>>(const std::vector<std::string>&)>;

// `encode` null: every way to cut an answer into tokens; else only canonical tokens in forced stretches.
// `tail`, when given, is what follows an accepting state of `dfa`, from its state `tail_start` on.
TokenAutomaton token_product(const Dfa& dfa, const Vocab& vocab, const Encoder& encode, const Dag* tail,
                             int32_t tail_start);
// Throws std::invalid_argument when no token sequence is an answer.
std::string pack(TokenAutomaton automaton, const Vocab& vocab);

std::string compile_program(std::string_view program, const Vocab& vocab, const Encoder& encode);
// Answers are the given token sequences, behind an answer of `program` unless that is empty.
std::string compile_sequences(std::string_view program, const std::vector<std::vector<int32_t>>& sequences,
                              const Vocab& vocab);

}  // namespace vstar
