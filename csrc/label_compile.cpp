// Compiles label names into the tables of label_match.h: a character table and a trie in breadth-first order.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>

#include "label_match.h"
#include "unicode_tables.h"

namespace vstar {
namespace {

using Page = std::array<uint16_t, 256>;
using Symbols = std::map<int32_t, uint16_t>;  // folded code point -> symbol
using Word = std::vector<uint16_t>;

// Characters before any label is known: word flag or separator, and which code points fold to which.
struct Characters {
  std::vector<uint16_t> page_index = std::vector<uint16_t>(kPages);
  std::vector<Page> pages;
  std::map<int32_t, int32_t> folds;
  std::multimap<int32_t, int32_t> unfolds;

  Characters() {
    std::vector<uint16_t> codes(0x110000, kNoSymbol);
    for (const auto& run : unicode::kKinds)
      std::fill(codes.begin() + run.first, codes.begin() + run.last + 1,
                run.kind == 1 ? kWordFlag : kSeparator);
    std::map<Page, uint16_t> known;
    for (int32_t p = 0; p < kPages; ++p) {
      Page page;
      std::copy_n(codes.begin() + p * 256, 256, page.begin());
      const auto [at, fresh] = known.emplace(page, static_cast<uint16_t>(pages.size()));
      if (fresh) pages.push_back(page);
      page_index[p] = at->second;
    }
    for (const auto& run : unicode::kFolds)
      for (int32_t cp = run.first; cp <= run.last; cp += run.step) {
        folds.emplace(cp, cp + run.delta);
        unfolds.emplace(cp + run.delta, cp);
      }
  }

  uint16_t code(int32_t cp) const { return pages[page_index[cp >> 8]][cp & 0xFF]; }
};

const Characters& characters() {
  static const Characters shared;
  return shared;
}

Symbols number_symbols(const std::vector<std::vector<int32_t>>& forms, const std::vector<int32_t>& after) {
  Symbols symbols;
  const auto add = [&](const std::vector<int32_t>& points) {
    for (int32_t cp : points) {
      if (cp < 0 || cp > 0x10FFFF)
        throw std::invalid_argument("a label has a code point that does not exist");
      if (characters().code(cp) != kSeparator) symbols.emplace(cp, 0);
    }
  };
  for (const auto& form : forms) add(form);
  add(after);
  if (symbols.size() > 0x7FF0)
    throw std::invalid_argument("the labels use more than 32752 different characters");
  uint16_t next = kSeparator + 1;
  for (auto& entry : symbols) entry.second = next++;
  return symbols;
}

Word encode(const std::vector<int32_t>& points, const Symbols& symbols) {
  Word word;
  for (int32_t cp : points) {
    const auto at = symbols.find(cp);
    word.push_back(at == symbols.end() ? kSeparator : at->second);
  }
  return word;
}

// The character table with the symbols written in, for a folded character and all that fold to it.
void write_symbols(const Symbols& symbols, std::vector<uint16_t>& page_index, std::vector<Page>& pages) {
  std::vector<bool> own(kPages);
  own[0] = true;  // page 0 starts with U+0000 and no other block of 256 is like it
  const auto set = [&](int32_t cp, uint16_t symbol) {
    const int32_t block = cp >> 8;
    if (!own[block]) {
      own[block] = true;
      pages.push_back(pages[page_index[block]]);
      page_index[block] = static_cast<uint16_t>(pages.size() - 1);
    }
    uint16_t& code = pages[page_index[block]][cp & 0xFF];
    code = (code & kWordFlag) | symbol;
  };
  for (const auto& [cp, symbol] : symbols) {
    set(cp, symbol);
    const auto [low, high] = characters().unfolds.equal_range(cp);
    for (auto other = low; other != high; ++other) set(other->second, symbol);
  }
}

struct Trie {
  std::vector<int32_t> first_child, label, root_child;
  std::vector<uint16_t> symbol;
};

// `words` sorted; states are numbered breadth first, so that the children of a state stand side by side.
Trie build_trie(const std::vector<Word>& words, const std::vector<int32_t>& owners, size_t symbols) {
  struct Span {
    size_t low, high, depth;
  };
  std::vector<Span> spans{{0, words.size(), 0}};
  Trie trie;
  trie.symbol.push_back(0);
  trie.label.push_back(-1);
  for (size_t state = 0; state < spans.size(); ++state) {
    auto [low, high, depth] = spans[state];
    trie.first_child.push_back(static_cast<int32_t>(spans.size()));
    for (; low < high && words[low].size() == depth; ++low) trie.label[state] = owners[low];
    while (low < high) {
      size_t stop = low;
      while (stop < high && words[stop][depth] == words[low][depth]) ++stop;
      spans.push_back({low, stop, depth + 1});
      trie.symbol.push_back(words[low][depth]);
      trie.label.push_back(-1);
      low = stop;
    }
  }
  trie.first_child.push_back(static_cast<int32_t>(spans.size()));
  trie.root_child.assign(symbols, 0);
  for (int32_t s = trie.first_child[0]; s < trie.first_child[1]; ++s) trie.root_child[trie.symbol[s]] = s;
  return trie;
}

template <class T>
int32_t append(std::string& block, const std::vector<T>& values) {
  block.resize((block.size() + 15) / 16 * 16);
  const auto offset = static_cast<int32_t>(block.size());
  block.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return offset;
}

}  // namespace

int32_t char_kind(int32_t cp) {
  const uint16_t code = characters().code(cp);
  return is_word(code) ? 1 : code == kSeparator ? 2 : 0;
}

int32_t char_fold(int32_t cp) {
  const auto at = characters().folds.find(cp);
  return at == characters().folds.end() ? cp : at->second;
}

std::string compile_labels(const std::vector<std::vector<int32_t>>& forms, const std::vector<int32_t>& owners,
                           const std::vector<int32_t>& after) {
  if (forms.empty() || forms.size() != owners.size())
    throw std::invalid_argument("forms and owners differ in length");
  const Symbols symbols = number_symbols(forms, after);
  std::vector<size_t> order(forms.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<Word> words;
  for (const auto& form : forms) words.push_back(encode(form, symbols));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return words[a] < words[b]; });
  std::vector<Word> sorted;
  std::vector<int32_t> sorted_owners;
  for (size_t i : order) {
    if (words[i].empty() || words[i].front() == kSeparator || words[i].back() == kSeparator)
      throw std::invalid_argument("a label is empty or has a separator at its edge");
    sorted.push_back(std::move(words[i]));
    sorted_owners.push_back(owners[i]);
  }
  const Trie trie = build_trie(sorted, sorted_owners, symbols.size() + 2);
  std::vector<uint16_t> page_index = characters().page_index;
  std::vector<Page> pages = characters().pages;
  write_symbols(symbols, page_index, pages);

  LabelHeader h{};
  std::string block(sizeof h, '\0');
  h.magic = kLabelMagic;
  h.symbols = static_cast<int32_t>(symbols.size() + 2);
  h.states = static_cast<int32_t>(trie.label.size());
  h.after_length = static_cast<int32_t>(after.size());
  h.page_index = append(block, page_index);
  h.pages = append(block, pages);
  h.root_child = append(block, trie.root_child);
  h.first_child = append(block, trie.first_child);
  h.state_symbol = append(block, trie.symbol);
  h.state_label = append(block, trie.label);
  h.after = append(block, encode(after, symbols));
  h.bytes = static_cast<int32_t>(block.size());
  std::memcpy(block.data(), &h, sizeof h);
  return block;
}

}  // namespace vstar
