// The trie over a vocabulary's token bytes, breadth first: children of a node lie side by side.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "constrain_compile.h"

namespace vstar {
namespace {

struct Named {
  std::string_view bytes;
  int32_t token;
};

// Nodes of one depth as ranges of the sorted tokens that share the bytes before it.
struct Range {
  int32_t low, high;
};

struct Trie {
  std::vector<int32_t> first_child, first_token, tokens;
  std::vector<uint8_t> byte;
};

// Takes the tokens that end at this node, then opens one child for each next byte.
void open_node(const std::vector<Named>& sorted, Range range, size_t depth, Trie& trie,
               std::vector<Range>& level) {
  trie.first_token.push_back(static_cast<int32_t>(trie.tokens.size()));
  int32_t i = range.low;
  for (; i < range.high && sorted[i].bytes.size() == depth; ++i) trie.tokens.push_back(sorted[i].token);
  while (i < range.high) {
    const auto b = static_cast<uint8_t>(sorted[i].bytes[depth]);
    const int32_t low = i;
    while (i < range.high && static_cast<uint8_t>(sorted[i].bytes[depth]) == b) ++i;
    trie.byte.push_back(b);
    level.push_back({low, i});
  }
}

Trie make_trie(const std::vector<Named>& sorted) {
  Trie trie;
  trie.byte.push_back(0);
  std::vector<Range> level{{0, static_cast<int32_t>(sorted.size())}}, below;
  for (size_t depth = 0; !level.empty(); ++depth, level.swap(below)) {
    below.clear();
    for (const Range& range : level) {
      const auto children = static_cast<int32_t>(trie.byte.size());
      open_node(sorted, range, depth, trie, below);
      trie.first_child.push_back(children);
    }
  }
  trie.first_child.push_back(static_cast<int32_t>(trie.byte.size()));
  trie.first_token.push_back(static_cast<int32_t>(trie.tokens.size()));
  return trie;
}

template <class T>
int32_t append(std::string& block, const std::vector<T>& values) {
  block.resize((block.size() + 7) / 8 * 8);
  const auto at = static_cast<int32_t>(block.size());
  block.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return at;
}

}  // namespace

std::string build_vocab(const std::vector<std::string_view>& tokens, const std::vector<int32_t>& eos,
                        int32_t vocabulary) {
  std::vector<Named> sorted;
  for (size_t i = 0; i < tokens.size(); ++i)
    if (!tokens[i].empty()) sorted.push_back({tokens[i], static_cast<int32_t>(i)});
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Named& a, const Named& b) { return a.bytes < b.bytes; });
  const Trie trie = make_trie(sorted);
  std::vector<int32_t> ends(eos), root(256, 0);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  for (int32_t c = trie.first_child[0]; c < trie.first_child[1]; ++c) root[trie.byte[c]] = c;
  VocabHeader header{};
  std::string block(sizeof header, '\0');
  header.magic = kVocabMagic;
  header.vocabulary = vocabulary;
  header.nodes = static_cast<int32_t>(trie.byte.size());
  header.token_count = static_cast<int32_t>(trie.tokens.size());
  header.eos_count = static_cast<int32_t>(ends.size());
  header.first_child = append(block, trie.first_child);
  header.byte = append(block, trie.byte);
  header.first_token = append(block, trie.first_token);
  header.tokens = append(block, trie.tokens);
  header.eos = append(block, ends);
  header.root = append(block, root);
  header.bytes = static_cast<int32_t>(block.size());
  std::memcpy(block.data(), &header, sizeof header);
  return block;
}

Vocab::Vocab(const uint8_t* base) {
  VocabHeader h;
  std::memcpy(&h, base, sizeof h);
  if (h.magic != kVocabMagic) throw std::invalid_argument("not a compiled vocabulary");
  vocabulary = h.vocabulary;
  nodes = h.nodes;
  eos_count = h.eos_count;
  first_child = reinterpret_cast<const int32_t*>(base + h.first_child);
  byte = base + h.byte;
  first_token = reinterpret_cast<const int32_t*>(base + h.first_token);
  tokens = reinterpret_cast<const int32_t*>(base + h.tokens);
  eos = reinterpret_cast<const int32_t*>(base + h.eos);
  root = reinterpret_cast<const int32_t*>(base + h.root);
}

int32_t Vocab::child(int32_t node, uint8_t b) const {
  if (node == 0) return root[b];
  int32_t low = first_child[node], high = first_child[node + 1];
  while (high - low > 8) {
    const int32_t middle = (low + high) / 2;
    if (byte[middle] <= b)
      low = middle;
    else
      high = middle;
  }
  for (; low < high; ++low)
    if (byte[low] == b) return low;
  return 0;
}

}  // namespace vstar
