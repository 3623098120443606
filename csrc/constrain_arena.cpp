// Arenas as blocks of bytes: checksum, the check of a block that came from outside, several joined into one.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "constrain.h"

namespace vstar {
namespace {

[[noreturn]] void broken(const std::string& what) {
  throw std::invalid_argument("not a usable compiled grammar: " + what);
}

ArenaHeader header_of(const std::string& block) {
  ArenaHeader h;
  if (block.size() < sizeof h) broken("it has " + std::to_string(block.size()) + " bytes");
  std::memcpy(&h, block.data(), sizeof h);
  if (h.magic != kArenaMagic) broken("it does not begin as one");
  if (h.version != kArenaVersion)
    broken("its format is " + std::to_string(h.version) + ", this is " + std::to_string(kArenaVersion));
  return h;
}

void check_array(const ArenaHeader& h, int32_t at, int64_t count, int64_t size) {
  const bool fits =
      at >= static_cast<int32_t>(sizeof h) && at % 4 == 0 && count >= 0 && at + count * size <= h.bytes;
  if (!fits) broken("an array lies outside of it");
}

constexpr int32_t kMostTokens = 1 << 24;  // of any vocabulary; sizes made from it stay inside an int32

void check_layout(const ArenaHeader& h) {
  const bool sizes = h.vocabulary > 0 && h.vocabulary <= kMostTokens && h.states >= 0 && h.edges >= 0 &&
                     h.dense >= 0 && h.dense <= h.states && h.eos_count > 0 &&
                     h.narrow == (h.vocabulary <= 0x10000) && h.start >= 0 && h.start < h.states;
  if (!sizes) broken("its sizes contradict each other");
  check_array(h, h.first, static_cast<int64_t>(h.states) + 1, 4);
  check_array(h, h.reach, h.states, sizeof(Reach));
  check_array(h, h.tokens, h.edges, h.narrow ? 2 : 4);
  check_array(h, h.next, h.edges, 4);
  check_array(h, h.bits, static_cast<int64_t>(h.dense) * ((h.vocabulary + 31) / 32), 4);
  check_array(h, h.fallback, h.dense, 4);
  check_array(h, h.eos, h.eos_count, 4);
}

void check_edges(const Arena& a, const ArenaHeader& h) {
  if (a.first[0] != 0 || a.first[h.states] != h.edges) broken("its states do not share out its edges");
  for (int32_t s = 0; s < h.states; ++s) {
    if (a.first[s + 1] < a.first[s] || a.first[s + 1] > h.edges) broken("a state's edges do not ascend");
    for (int32_t e = a.first[s]; e < a.first[s + 1]; ++e) {
      const int32_t token = token_of(a, e), next = a.next[e];
      if (token < 0 || token >= h.vocabulary) broken("it has token " + std::to_string(token));
      if (e > a.first[s] && token <= token_of(a, e - 1)) broken("a state's tokens do not ascend");
      if (next >= h.states || (next < 0 && next != kDone)) broken("an edge leads nowhere");
      if (s < a.dense && !bit_of(a.bits + static_cast<int64_t>(s) * a.words, token))
        broken("a bit is missing");
    }
  }
}

template <class T>
void append(std::string& block, const T* values, int64_t count) {
  block.append(reinterpret_cast<const char*>(values), static_cast<size_t>(count) * sizeof(T));
}

// The arrays of a joined arena, filled piece by piece: dense states of all parts, then the others.
struct Joined {
  std::vector<int32_t> first{0}, tokens, next, fallback;
  std::vector<Reach> reach;
  std::vector<uint32_t> bits;
};

void take_states(const Arena& a, int32_t low, int32_t high, const std::vector<int32_t>& number, Joined& out) {
  const auto renamed = [&](int32_t s) { return s < 0 ? s : number[s]; };
  for (int32_t s = low; s < high; ++s) {
    for (int32_t e = a.first[s]; e < a.first[s + 1]; ++e) {
      out.tokens.push_back(token_of(a, e));
      out.next.push_back(renamed(a.next[e]));
    }
    out.first.push_back(static_cast<int32_t>(out.tokens.size()));
    out.reach.push_back(a.reach[s]);
    if (s >= a.dense) continue;
    const uint32_t* row = a.bits + static_cast<int64_t>(s) * a.words;
    out.bits.insert(out.bits.end(), row, row + a.words);
    out.fallback.push_back(renamed(a.fallback[s]));
  }
}

template <class T>
int32_t place(std::string& block, const std::vector<T>& values) {
  block.resize((block.size() + 15) / 16 * 16);
  const size_t at = block.size();
  if (at + values.size() * sizeof(T) > 0x7FFFFFFF)
    throw std::invalid_argument("the arena is larger than 2 GiB");
  append(block, values.data(), static_cast<int64_t>(values.size()));
  return static_cast<int32_t>(at);
}

std::string write(const Joined& parts, ArenaHeader h, const std::vector<int32_t>& eos) {
  std::string out(sizeof h, '\0');
  h.first = place(out, parts.first);
  h.reach = place(out, parts.reach);
  h.tokens = h.narrow ? place(out, std::vector<uint16_t>(parts.tokens.begin(), parts.tokens.end()))
                      : place(out, parts.tokens);
  h.next = place(out, parts.next);
  h.bits = place(out, parts.bits);
  h.fallback = place(out, parts.fallback);
  h.eos = place(out, eos);
  out.resize((out.size() + 15) / 16 * 16);
  h.bytes = static_cast<int32_t>(out.size());
  h.edges = static_cast<int32_t>(parts.tokens.size());
  std::memcpy(out.data(), &h, sizeof h);
  h.checksum = arena_checksum(out);
  std::memcpy(out.data(), &h, sizeof h);
  return out;
}

}  // namespace

uint32_t arena_checksum(const std::string& block) {
  constexpr size_t at = offsetof(ArenaHeader, checksum);
  uint64_t h = 0xCBF29CE484222325u;
  for (size_t i = 0; i + 8 <= block.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, block.data() + i, 8);
    if (i / 8 == at / 8) word &= at % 8 ? 0x00000000FFFFFFFFu : 0xFFFFFFFF00000000u;
    h = (h ^ word) * 0x100000001B3u;
    h ^= h >> 32;
  }
  for (size_t i = block.size() / 8 * 8; i < block.size(); ++i)
    h = (h ^ static_cast<uint8_t>(block[i])) * 0x100000001B3u;
  return static_cast<uint32_t>(h ^ (h >> 32));
}

void check_arena(const std::string& block) {
  const ArenaHeader h = header_of(block);
  if (static_cast<int64_t>(h.bytes) != static_cast<int64_t>(block.size()))
    broken("it has " + std::to_string(block.size()) + " bytes of " + std::to_string(h.bytes));
  if (arena_checksum(block) != h.checksum) broken("its checksum does not match; it was damaged");
  check_layout(h);
  const Arena a(h, reinterpret_cast<const uint8_t*>(block.data()));
  check_edges(a, h);
  for (int32_t d = 0; d < h.dense; ++d)
    if (a.fallback[d] >= h.states || (a.fallback[d] < 0 && a.fallback[d] != kLost))
      broken("a state leads nowhere");
  for (int32_t i = 0; i < h.eos_count; ++i)
    if (a.eos[i] < 0 || a.eos[i] >= h.vocabulary) broken("it has an end token outside the vocabulary");
}

std::string join_arenas(const std::vector<std::string>& blocks, std::vector<int32_t>& starts) {
  std::vector<ArenaHeader> headers;
  std::vector<Arena> arenas;
  int32_t dense = 0;
  int64_t states = 0;
  for (const std::string& block : blocks) {
    headers.push_back(header_of(block));
    arenas.emplace_back(headers.back(), reinterpret_cast<const uint8_t*>(block.data()));
    if (headers.back().vocabulary != headers[0].vocabulary)
      throw std::invalid_argument("grammars of different vocabularies cannot share an arena");
    dense += headers.back().dense;
    states += headers.back().states;
  }
  if (blocks.empty() || states > 0x7FFFFFF0) throw std::invalid_argument("no grammar, or too many, to join");
  std::vector<std::vector<int32_t>> numbers(blocks.size());
  int32_t low = 0, high = dense;
  for (size_t g = 0; g < blocks.size(); ++g) {
    numbers[g].resize(static_cast<size_t>(headers[g].states));
    for (int32_t s = 0; s < headers[g].states; ++s) numbers[g][s] = s < headers[g].dense ? low++ : high++;
    starts.push_back(numbers[g][headers[g].start]);
  }
  Joined parts;
  for (size_t g = 0; g < blocks.size(); ++g) take_states(arenas[g], 0, headers[g].dense, numbers[g], parts);
  for (size_t g = 0; g < blocks.size(); ++g)
    take_states(arenas[g], headers[g].dense, headers[g].states, numbers[g], parts);
  ArenaHeader h = headers[0];
  h.states = static_cast<int32_t>(states);
  h.dense = dense;
  h.start = starts[0];
  return write(parts, h, std::vector<int32_t>(arenas[0].eos, arenas[0].eos + arenas[0].eos_count));
}

}  // namespace vstar
