// Dfa over bytes x trie of the vocabulary -> automaton over tokens, from the states that a token can end in.
#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "constrain.h"
#include "constrain_compile.h"

namespace vstar {
namespace {

constexpr int32_t kWideEdges = 6;  // a state with more edges gets a table of all bytes

class Product {
 public:
  Product(const Dfa& dfa, const Vocab& vocab, const Encoder& encode, const Dag* tail, int32_t tail_start)
      : dfa_(dfa), vocab_(vocab), encode_(encode), number_(dfa.states(), -1), wide_(dfa.states(), -1) {
    for (int32_t s = 0; s < dfa_.states(); ++s)
      if (dfa_.first[s + 1] - dfa_.first[s] > kWideEdges) widen(s);
    if (tail) take_tail(*tail, tail_start);
  }

  TokenAutomaton run() {
    out_.start = number(dfa_.start);
    for (size_t done = 0; done < queue_.size();) {
      const size_t level = queue_.size();
      if (encode_) encode_level(done, level);
      for (; done < level; ++done) expand(queue_[done]);
    }
    return std::move(out_);
  }

 private:
  // States of the tail come first, so that the queue's states stay in order behind them.
  void take_tail(const Dag& tail, int32_t tail_start) {
    for (int32_t s = 0; s < tail.states(); ++s) {
      for (const DagEdge* e = tail.begin(s); e != tail.end(s); ++e)
        found_.push_back(pair(e->label, e->target));
      finish_state(tail.accepts(s));
    }
    tail_ = true;
    tail_states_ = tail.states();
    tail_start_ = tail_start;
  }

  void widen(int32_t s) {
    wide_[s] = static_cast<int32_t>(tables_.size() / 256);
    tables_.resize(tables_.size() + 256, -1);
    for (int32_t e = dfa_.first[s]; e < dfa_.first[s + 1]; ++e)
      for (int32_t b = dfa_.edges[e].low; b <= dfa_.edges[e].high; ++b)
        tables_[static_cast<size_t>(wide_[s]) * 256 + b] = dfa_.edges[e].target;
  }

  static uint64_t pair(int32_t token, int32_t next) {
    return static_cast<uint64_t>(static_cast<uint32_t>(token)) << 32 | static_cast<uint32_t>(next);
  }

  int32_t number(int32_t s) {
    if (tail_ && dfa_.accept[s]) return tail_start_;
    if (number_[s] < 0) {
      number_[s] = tail_states_ + static_cast<int32_t>(queue_.size());
      queue_.push_back(s);
    }
    return number_[s];
  }

  void emit(int32_t node, int32_t state) {
    const int32_t low = vocab_.first_token[node], high = vocab_.first_token[node + 1];
    if (low == high) return;
    const int32_t next = number(state);
    for (int32_t t = low; t < high; ++t) found_.push_back(pair(vocab_.tokens[t], next));
  }

  void step(int32_t child, int32_t state) {
    emit(child, state);
    if (vocab_.first_child[child] < vocab_.first_child[child + 1]) walk(child, state);
  }

  // A tail's first token must begin where the tail begins.
  void walk(int32_t node, int32_t state) {
    if (tail_ && dfa_.accept[state]) return;
    if (wide_[state] >= 0) {
      const int32_t* table = tables_.data() + static_cast<size_t>(wide_[state]) * 256;
      for (int32_t c = vocab_.first_child[node]; c < vocab_.first_child[node + 1]; ++c)
        if (table[vocab_.byte[c]] >= 0) step(c, table[vocab_.byte[c]]);
      return;
    }
    for (int32_t e = dfa_.first[state]; e < dfa_.first[state + 1]; ++e) {
      const ByteEdge edge = dfa_.edges[e];
      if (edge.low == edge.high) {
        if (const int32_t c = vocab_.child(node, edge.low)) step(c, edge.target);
        continue;
      }
      for (int32_t c = vocab_.first_child[node]; c < vocab_.first_child[node + 1]; ++c)
        if (vocab_.byte[c] >= edge.low && vocab_.byte[c] <= edge.high) step(c, edge.target);
    }
  }

  void expand(int32_t s) {
    const auto forced = forced_.find(s);
    if (forced == forced_.end())
      walk(0, s);
    else
      found_.push_back(pair(forced->second.first, number(forced->second.second)));
    finish_state(dfa_.accept[s] != 0);
  }

  void finish_state(bool accept) {
    if (accept)
      for (int32_t i = 0; i < vocab_.eos_count; ++i) found_.push_back(pair(vocab_.eos[i], kDone));
    if (static_cast<int64_t>(found_.size()) * 64 > vocab_.vocabulary && found_.size() > 64) make_dense();
    std::sort(found_.begin(), found_.end());
    for (uint64_t edge : found_) {
      out_.tokens.push_back(static_cast<int32_t>(edge >> 32));
      out_.next.push_back(static_cast<int32_t>(static_cast<uint32_t>(edge)));
    }
    found_.clear();
    out_.first.push_back(static_cast<int32_t>(out_.tokens.size()));
    out_.accept.push_back(accept);
  }

  // Moves the edges to the commonest next state into a bitmap.
  void make_dense() {
    std::unordered_map<int32_t, int32_t> counts;
    int32_t fallback = -1, most = 0;
    for (size_t i = 0, run = 1; i < found_.size(); i += run, run = 1) {
      const auto next = static_cast<int32_t>(static_cast<uint32_t>(found_[i]));
      while (i + run < found_.size() && static_cast<int32_t>(static_cast<uint32_t>(found_[i + run])) == next)
        ++run;
      const int32_t count = counts[next] += static_cast<int32_t>(run);
      if (next >= 0 && count > most) fallback = next, most = count;
    }
    if (static_cast<int64_t>(most) * 128 <= vocab_.vocabulary) return;
    TokenAutomaton::Dense row{out_.states(), fallback, {}};
    row.bits.assign((vocab_.vocabulary + 31) / 32, 0);
    size_t kept = 0;
    for (uint64_t edge : found_) {
      const auto token = static_cast<uint32_t>(edge >> 32);
      row.bits[token >> 5] |= 1u << (token & 31);
      if (static_cast<int32_t>(static_cast<uint32_t>(edge)) != fallback) found_[kept++] = edge;
    }
    found_.resize(kept);
    out_.dense.push_back(std::move(row));
  }

  // ---- canonical tokens in forced stretches ----

  // The bytes that must follow a state, and whether an answer ends behind them.
  std::string stretch(int32_t s, bool& ends) const {
    std::string bytes;
    while (!dfa_.accept[s] && dfa_.first[s + 1] - dfa_.first[s] == 1 && bytes.size() < 4096) {
      const ByteEdge& e = dfa_.edges[dfa_.first[s]];
      if (e.low != e.high) break;
      bytes.push_back(static_cast<char>(e.low));
      s = e.target;
    }
    ends = dfa_.accept[s] && dfa_.first[s + 1] == dfa_.first[s];
    return bytes;
  }

  // Whether a token that begins in the first `length` bytes could reach beyond the stretch.
  bool may_cross(const std::string& bytes, size_t length) const {
    for (size_t start = 0; start < length; ++start) {
      int32_t node = 0;
      size_t at = start;
      for (; at < bytes.size(); ++at)
        if ((node = vocab_.child(node, static_cast<uint8_t>(bytes[at]))) == 0) break;
      if (at == bytes.size() && vocab_.first_child[node] < vocab_.first_child[node + 1]) return true;
    }
    return false;
  }

  void encode_level(size_t low, size_t high) {
    std::vector<std::string> texts;
    std::vector<std::pair<int32_t, bool>> owners;
    for (size_t i = low; i < high; ++i) {
      bool ends;
      std::string bytes = stretch(queue_[i], ends);
      if (bytes.empty()) continue;
      owners.emplace_back(queue_[i], ends);
      texts.push_back(std::move(bytes));
    }
    const std::vector<std::vector<int32_t>> encoded = encode_(texts);
    if (encoded.size() != texts.size()) throw std::invalid_argument("the encoder lost some texts");
    for (size_t i = 0; i < texts.size(); ++i)
      if (!encoded[i].empty()) force(owners[i].first, owners[i].second, texts[i], encoded[i][0]);
  }

  // Follows the first canonical token through the trie, and keeps it if its bytes are the stretch's.
  void force(int32_t s, bool ends, const std::string& bytes, int32_t token) {
    int32_t node = 0, state = s;
    for (size_t length = 1; length <= bytes.size(); ++length) {
      const auto b = static_cast<uint8_t>(bytes[length - 1]);
      if ((node = vocab_.child(node, b)) == 0) return;
      state = dfa_.edges[dfa_.first[state]].target;
      for (int32_t t = vocab_.first_token[node]; t < vocab_.first_token[node + 1]; ++t) {
        if (vocab_.tokens[t] != token) continue;
        if (ends || !may_cross(bytes, length)) forced_[s] = {token, state};
        return;
      }
    }
  }

  const Dfa& dfa_;
  const Vocab& vocab_;
  const Encoder& encode_;
  TokenAutomaton out_;
  std::vector<int32_t> number_, wide_, tables_, queue_;
  std::vector<uint64_t> found_;
  std::unordered_map<int32_t, std::pair<int32_t, int32_t>> forced_;
  int32_t tail_states_ = 0, tail_start_ = 0;
  bool tail_ = false;
};

}  // namespace

TokenAutomaton token_product(const Dfa& dfa, const Vocab& vocab, const Encoder& encode, const Dag* tail,
                             int32_t tail_start) {
  return Product(dfa, vocab, encode, tail, tail_start).run();
}

}  // namespace vstar
