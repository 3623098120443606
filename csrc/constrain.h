// constrain: which tokens may come next, as a token automaton that lies in one block of memory, the arena.
//
//   state s   dense (s < dense):   bits[s]      one bit a token, + edges: exceptions to fallback[s]
//             sparse:              edges        first[s] .. first[s + 1], ascending tokens, each with a next
//             state
//
// Many automata share an arena; a row's state says which one it follows. States below zero have no edges:
// kFree allows everything, kDone and kLost allow the end-of-sequence tokens. `dist` is the fewest tokens from
// a state to a complete answer; an edge is legal only if its next state's `dist` is below the row's remaining
// tokens. One thread (CPU: a loop, GPU: a thread, warp or block) owns one row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"

namespace vstar {

constexpr int32_t kFree = -1, kDone = -2, kLost = -3;
constexpr int32_t kUnlimited = 0x7FFFFFFF;   // `remaining` of a row without a token budget
constexpr int32_t kArenaMagic = 0x31435356;  // "VSC1"
constexpr int32_t kArenaVersion = 1;

// Offsets count bytes from the block's start.
struct ArenaHeader {
  int32_t magic, version, bytes, vocabulary, states, edges, dense, eos_count, narrow, start;
  int32_t first, reach, tokens, next, bits, fallback, eos;
  uint32_t checksum;  // FNV-1a of the block with this field 0
};

struct Reach {
  uint16_t dist;  // fewest tokens from here to a complete answer; 0: complete
  uint16_t need;  // with this many tokens left every edge is legal
};

struct Arena {
  int32_t vocabulary, words, dense, eos_count;
  bool narrow;              // tokens are 16 bits wide
  const int32_t* first;     // [states + 1]
  const Reach* reach;       // [states]
  const void* tokens;       // [edges] ascending within a state
  const int32_t* next;      // [edges]
  const uint32_t* bits;     // [dense, words]
  const int32_t* fallback;  // [dense] next state of the set bits that have no edge
  const int32_t* eos;       // [eos_count]

  Arena(const ArenaHeader& h, const uint8_t* base)
      : vocabulary(h.vocabulary),
        words((h.vocabulary + 31) / 32),
        dense(h.dense),
        eos_count(h.eos_count),
        narrow(h.narrow != 0),
        first(reinterpret_cast<const int32_t*>(base + h.first)),
        reach(reinterpret_cast<const Reach*>(base + h.reach)),
        tokens(base + h.tokens),
        next(reinterpret_cast<const int32_t*>(base + h.next)),
        bits(reinterpret_cast<const uint32_t*>(base + h.bits)),
        fallback(reinterpret_cast<const int32_t*>(base + h.fallback)),
        eos(reinterpret_cast<const int32_t*>(base + h.eos)) {}
};

VSTAR_HD int32_t token_of(const Arena& a, int32_t edge) {
  return a.narrow ? static_cast<const uint16_t*>(a.tokens)[edge]
                  : static_cast<const int32_t*>(a.tokens)[edge];
}

VSTAR_HD bool is_legal(const Arena& a, int32_t next, int32_t remaining) {
  return next < 0 || a.reach[next].dist < remaining;
}

// Whether every edge of `state` is legal, so that none has to be looked at.
VSTAR_HD bool all_legal(const Arena& a, int32_t state, int32_t remaining) {
  return a.reach[state].need <= remaining;
}

// A row whose budget is spent is treated as done.
VSTAR_HD int32_t state_within(int32_t state, int32_t remaining) {
  return state >= 0 && remaining <= 0 ? kDone : state;
}

// First edge in [low, high) whose token is not below `token`.
VSTAR_HD int32_t lower_edge(const Arena& a, int32_t low, int32_t high, int32_t token) {
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (token_of(a, middle) < token)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

VSTAR_HD bool bit_of(const uint32_t* words, int32_t token) { return words[token >> 5] >> (token & 31) & 1; }

// State after `token`; kLost when it was not legal. A done row stays done whatever comes (padding).
VSTAR_HD int32_t after_token(const Arena& a, int32_t state, int64_t token, int32_t remaining) {
  if (state < 0) return state;
  if (remaining <= 0) return kDone;
  if (token < 0 || token >= a.vocabulary) return kLost;
  const auto id = static_cast<int32_t>(token);
  const int32_t last = a.first[state + 1], edge = lower_edge(a, a.first[state], last, id);
  int32_t next = kLost;
  if (edge < last && token_of(a, edge) == id)
    next = a.next[edge];
  else if (state < a.dense && bit_of(a.bits + static_cast<int64_t>(state) * a.words, id))
    next = a.fallback[state];
  return next != kLost && is_legal(a, next, remaining) ? next : kLost;
}

VSTAR_HD int32_t remaining_after(int32_t state, int32_t remaining) {
  return state < 0 || remaining == kUnlimited ? remaining : remaining - 1;
}

// Calls seen(token) for each legal token of a state that is not dense and not kFree, in ascending order.
template <class Seen>
VSTAR_HD void each_token(const Arena& a, int32_t state, int32_t remaining, Seen seen) {
  if (state < 0) {
    for (int32_t i = 0; i < a.eos_count; ++i) seen(a.eos[i]);
    return;
  }
  const bool all = all_legal(a, state, remaining);
  for (int32_t e = a.first[state]; e < a.first[state + 1]; ++e)
    if (all || is_legal(a, a.next[e], remaining)) seen(token_of(a, e));
}

// Word w of a dense state's legal tokens: set bits whose next state is legal. `low`..`high` are the edges of
// this word.
VSTAR_HD uint32_t dense_word(const Arena& a, int32_t state, int32_t w, int32_t remaining, int32_t low,
                             int32_t high) {
  uint32_t word = a.bits[static_cast<int64_t>(state) * a.words + w];
  if (all_legal(a, state, remaining)) return word;
  const bool rest = is_legal(a, a.fallback[state], remaining);
  uint32_t edges = 0, legal = 0;
  for (int32_t e = low; e < high; ++e) {
    const uint32_t bit = 1u << (token_of(a, e) & 31);
    edges |= bit;
    if (is_legal(a, a.next[e], remaining)) legal |= bit;
  }
  return (rest ? word & ~edges : 0) | legal;
}

// The only legal token of a state and the state behind it; token -1 when there is none or more than one.
struct Only {
  int32_t token, next;
};

VSTAR_HD Only only_token(const Arena& a, int32_t state, int32_t remaining) {
  Only only{-1, kLost};
  if (state < a.dense || remaining <= 0) return only;  // negative, dense or spent
  for (int32_t e = a.first[state]; e < a.first[state + 1]; ++e) {
    if (!is_legal(a, a.next[e], remaining)) continue;
    if (only.token >= 0) return {-1, kLost};
    only = {token_of(a, e), a.next[e]};
  }
  return only;
}

// ---- operations; rows are independent and `state`, `remaining`, `step` are theirs, [rows] each ----

enum class LogitsType : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

struct RowStates {
  int32_t* state;
  int32_t* remaining;  // tokens left, kUnlimited for no budget
  int32_t* step;       // tokens taken: position in the row's random stream
  int32_t rows;
};

// The only legal tokens from row r on, at most `most`; with `advance` the row goes past them.
VSTAR_HD void force_row(const Arena& a, const RowStates& rows, int32_t r, int64_t* tokens, int32_t* lengths,
                        int32_t most, bool advance) {
  int32_t state = rows.state[r], remaining = rows.remaining[r], length = 0;
  for (; length < most; ++length) {
    const Only only = only_token(a, state, remaining);
    if (only.token < 0) break;
    tokens[static_cast<int64_t>(r) * most + length] = only.token;
    remaining = remaining_after(state, remaining);
    state = only.next;
  }
  lengths[r] = length;
  if (!advance) return;
  rows.state[r] = state;
  rows.remaining[r] = remaining;
  rows.step[r] += length;
}

struct LogitsRows {
  void* data;  // [rows, vocabulary], unit column stride
  LogitsType type;
  int64_t stride;  // elements from row to row
};

struct DrawRows {
  const int64_t* seeds;  // [rows]
  int64_t* ids;          // [rows] -1 where the legal logits are NaN, +inf or all -inf; the row then stays
  float* logprobs;       // [rows] log-softmax over the legal tokens
  float scale;           // log2(e) / temperature, 0 for greedy
  uint64_t top_p;        // in units of 2^-62; 2^62 keeps all
  int32_t top_k;         // 0 keeps all
};

// Each returns how many rows are lost through this call.
int32_t constrain_advance_cpu(const Arena& a, const RowStates& rows, const int64_t* tokens);
void constrain_mask_cpu(const Arena& a, const RowStates& rows, const LogitsRows& logits, int threads);
void constrain_sample_cpu(const Arena& a, const RowStates& rows, const LogitsRows& logits,
                          const DrawRows& draw, int threads);
// tokens [rows, most], lengths [rows]; the rows move when `advance`.
void constrain_forced_cpu(const Arena& a, const RowStates& rows, int64_t* tokens, int32_t* lengths,
                          int32_t most, bool advance);
// out [rows, words] with a stride; `filled` [rows] is what each row of `out` holds now: a state, or
// kUnknownFill.
constexpr int32_t kUnknownFill = -1000;
void constrain_fill_cpu(const Arena& a, const RowStates& rows, uint32_t* out, int64_t stride,
                        int32_t* filled);

void constrain_advance_cuda(const Arena& a, const RowStates& rows, const int64_t* tokens, uintptr_t stream);
void constrain_mask_cuda(const Arena& a, const RowStates& rows, const LogitsRows& logits, uintptr_t stream);
// Both in one launch; `tickets` [rows] int32 are zeros, and are zeros again afterwards.
void constrain_advance_mask_cuda(const Arena& a, const RowStates& rows, const int64_t* tokens,
                                 int32_t* tickets, const LogitsRows& logits, uintptr_t stream);
void constrain_sample_cuda(const Arena& a, const RowStates& rows, const LogitsRows& logits,
                           const DrawRows& draw, uintptr_t stream);
void constrain_forced_cuda(const Arena& a, const RowStates& rows, int64_t* tokens, int32_t* lengths,
                           int32_t most, bool advance, uintptr_t stream);
void constrain_fill_cuda(const Arena& a, const RowStates& rows, uint32_t* out, int64_t stride,
                         uintptr_t stream);

// ---- arenas as blocks of bytes ----

uint32_t arena_checksum(const std::string& block);
// Throws std::invalid_argument that says what is wrong with a block from outside.
void check_arena(const std::string& block);
// One arena of several; `starts` gets the start state of each.
std::string join_arenas(const std::vector<std::string>& blocks, std::vector<int32_t>& starts);

}  // namespace vstar
