// Compiles label names into the tables of label_match.h: a character table, a trie in breadth-first order,
// and the hash table of first words that leads into it.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "label_match.h"
#include "unicode_tables.h"

namespace vstar {
namespace {

using Page = std::array<uint16_t, 256>;
using Forms = std::vector<std::u32string>;
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

// Folded code point -> symbol; separators have none of their own.
class Symbols {
 public:
  Symbols(const Forms& forms, const std::u32string& after) {
    for (const auto& form : forms) add(form);
    add(after);
    if (points_.size() > 0x7FF0)
      throw std::invalid_argument("the labels use more than 32752 different characters");
    std::sort(points_.begin(), points_.end());
    for (size_t i = 0; i < points_.size(); ++i) number(points_[i]) = static_cast<uint16_t>(i + 2);
  }

  Word encode(const std::u32string& points) const {
    Word word;
    word.reserve(points.size());
    for (char32_t cp : points) word.push_back(cp < kDense ? dense_[cp] : sparse_.at(cp));
    return word;
  }

  const std::vector<char32_t>& points() const { return points_; }
  size_t size() const { return points_.size() + 2; }

 private:
  void add(const std::u32string& form) {
    for (char32_t cp : form) {
      if (cp > 0x10FFFF) throw std::invalid_argument("a label has a code point that does not exist");
      if (number(cp) != 0) continue;
      number(cp) = kSeparator;
      if (characters().code(static_cast<int32_t>(cp)) != kSeparator) points_.push_back(cp);
    }
  }

  uint16_t& number(char32_t cp) { return cp < kDense ? dense_[cp] : sparse_[cp]; }

  static constexpr char32_t kDense = 0x800;
  std::vector<uint16_t> dense_ = std::vector<uint16_t>(kDense);
  std::unordered_map<char32_t, uint16_t> sparse_;
  std::vector<char32_t> points_;
};

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
  for (size_t i = 0; i < symbols.points().size(); ++i) {
    const auto cp = static_cast<int32_t>(symbols.points()[i]);
    const auto symbol = static_cast<uint16_t>(i + 2);
    set(cp, symbol);
    const auto [low, high] = characters().unfolds.equal_range(cp);
    for (auto other = low; other != high; ++other) set(other->second, symbol);
  }
}

constexpr int32_t kNoChild = -1;  // no symbol

struct Trie {
  std::vector<Node> nodes;
  std::vector<uint16_t> symbol;  // leads to a state
  std::vector<int32_t> root_child;
};

// `words` sorted; states are numbered breadth first, so that the children of a state stand side by side.
Trie build_trie(const std::vector<std::pair<Word, int32_t>>& words, size_t symbols) {
  struct Span {
    size_t low, high, depth;
  };
  std::vector<Span> spans{{0, words.size(), 0}};
  Trie trie;
  trie.symbol.push_back(0);
  for (size_t state = 0; state < spans.size(); ++state) {
    auto [low, high, depth] = spans[state];
    const size_t first = spans.size();
    Node node{static_cast<int32_t>(first), -1, 0, kNoChild};
    for (; low < high && words[low].first.size() == depth; ++low) node.label = words[low].second;
    while (low < high) {
      size_t stop = low;
      while (stop < high && words[stop].first[depth] == words[low].first[depth]) ++stop;
      spans.push_back({low, stop, depth + 1});
      trie.symbol.push_back(words[low].first[depth]);
      low = stop;
    }
    node.children = static_cast<int32_t>(spans.size() - first);
    if (node.children) node.symbol = trie.symbol[first];
    trie.nodes.push_back(node);
  }
  trie.root_child.assign(symbols, 0);
  const Node& root = trie.nodes[0];
  for (int32_t s = root.first_child; s < root.first_child + root.children; ++s)
    trie.root_child[trie.symbol[s]] = s;
  return trie;
}

bool is_ascii_word(char32_t c) { return c < 0x80 && (('0' <= c && c <= '9') || ('a' <= c && c <= 'z')); }

// The hashed first words of all forms, the bitmap before them, and the other ASCII characters that begin a
// form.
struct FirstWords {
  std::vector<FirstWord> entries;
  std::vector<uint32_t> filter;
  std::vector<uint8_t> odd_roots = std::vector<uint8_t>(128);
  int32_t entry_shift, filter_shift;

  FirstWords(const Forms& forms, const Symbols& symbols, const Trie& trie) {
    std::vector<FirstWord> found;
    for (const auto& form : forms) {
      if (form[0] < 0x80 && !is_ascii_word(form[0])) odd_roots[form[0]] = 1;
      if (is_ascii_word(form[0])) found.push_back(first_word(form, symbols, trie));
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    const auto same = [](const auto& a, const auto& b) { return a.key == b.key; };
    found.erase(std::unique(found.begin(), found.end(), same), found.end());
    int bits = 3;
    while ((size_t{1} << bits) < 2 * found.size()) ++bits;
    entry_shift = 64 - bits;
    filter_shift = entry_shift - 5;
    entries.resize(size_t{1} << bits);
    filter.resize(size_t{1} << bits);
    for (const FirstWord& word : found) insert(word);
  }

 private:
  static FirstWord first_word(const std::u32string& form, const Symbols& symbols, const Trie& trie) {
    FirstWord word{0, 0, 0};
    const Word codes = symbols.encode(form.substr(0, kKeyBytes));
    for (size_t i = 0; i < codes.size() && is_ascii_word(form[i]); ++i) {
      word.key |= static_cast<uint64_t>(form[i]) << (8 * i);
      const Node& node = trie.nodes[word.state];
      const auto low = trie.symbol.begin() + node.first_child, high = low + node.children;
      word.state = static_cast<int32_t>(std::lower_bound(low, high, codes[i]) - trie.symbol.begin());
    }
    return word;
  }

  void insert(const FirstWord& word) {
    const uint64_t hash = hash_key(word.key);
    filter[hash >> filter_shift >> 5] |= 1u << (hash >> filter_shift & 31);
    size_t at = hash >> entry_shift;
    while (entries[at].state != 0) at = (at + 1) & (entries.size() - 1);
    entries[at] = word;
  }
};

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

std::string compile_labels(const Forms& forms, const std::vector<int32_t>& owners,
                           const std::u32string& after) {
  const Symbols symbols(forms, after);
  std::vector<std::pair<Word, int32_t>> sorted;
  for (size_t i = 0; i < forms.size(); ++i) {
    sorted.emplace_back(symbols.encode(forms[i]), owners[i]);
    const Word& word = sorted.back().first;
    if (word.empty() || word.front() == kSeparator || word.back() == kSeparator)
      throw std::invalid_argument("a label is empty or has a separator at its edge");
  }
  std::sort(sorted.begin(), sorted.end());
  const Trie trie = build_trie(sorted, symbols.size());
  const FirstWords first(forms, symbols, trie);
  std::vector<uint16_t> page_index = characters().page_index;
  std::vector<Page> pages = characters().pages;
  write_symbols(symbols, page_index, pages);

  LabelHeader h{};
  std::string block(sizeof h, '\0');
  h.magic = kLabelMagic;
  h.symbols = static_cast<int32_t>(symbols.size());
  h.states = static_cast<int32_t>(trie.nodes.size());
  h.after_length = static_cast<int32_t>(after.size());
  h.page_index = append(block, page_index);
  h.pages = append(block, pages);
  h.root_child = append(block, trie.root_child);
  h.nodes = append(block, trie.nodes);
  h.state_symbol = append(block, trie.symbol);
  h.after = append(block, symbols.encode(after));
  h.filter = append(block, first.filter);
  h.filter_shift = first.filter_shift;
  h.entries = append(block, first.entries);
  h.entry_shift = first.entry_shift;
  h.entry_mask = static_cast<int32_t>(first.entries.size() - 1);
  h.odd_roots = append(block, first.odd_roots);
  h.has_odd_roots = std::count(first.odd_roots.begin(), first.odd_roots.end(), 1) > 0;
  h.bytes = static_cast<int32_t>(block.size());
  std::memcpy(block.data(), &h, sizeof h);
  return block;
}

}  // namespace vstar
