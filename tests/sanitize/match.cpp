// Labels and values in random texts and in random ids that spell them: what is found must be the same.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "../../csrc/label_rows.h"
#include "../../csrc/value_match.h"
#include "random.h"

namespace fuzz {
namespace {

using namespace vstar;

const std::vector<std::string> kPieces{"kick",
                                       "spin",
                                       " ",
                                       "_",
                                       "-",
                                       "snow",
                                       "board",
                                       "\xC3\xA9",
                                       "\xE5\xAD\x97",
                                       "Answer:",
                                       "not ",
                                       "n't ",
                                       "C++",
                                       "12",
                                       ".5",
                                       ":",
                                       "1:02",
                                       ",",
                                       "345",
                                       "twenty",
                                       "-five",
                                       " and a half",
                                       "min",
                                       " s",
                                       "%",
                                       "or ",
                                       " to ",
                                       "2e9",
                                       "3rd",
                                       "e",
                                       "\n",
                                       "(x)",
                                       "million",
                                       "KICK",
                                       "\xF0\x9F\x98\x80"};
const std::vector<std::u32string> kForms{U"kick",      U"spin kick", U"spin", U"snow",
                                         U"snowboard", U"é",         U"c++",  U"(x)",
                                         U"字",        U"é t",       U"12",   U"extraordinarily long"};

struct Labels {
  std::string block;
  int32_t count;

  explicit Labels(Random& random) {
    std::vector<std::u32string> forms;
    std::vector<int32_t> owners;
    for (const auto& form : kForms)
      if (random.one_in(2)) owners.push_back(static_cast<int32_t>(forms.size())), forms.push_back(form);
    if (random.one_in(4)) {
      std::u32string odd;
      for (int64_t n = random.between(1, 9); n > 0; --n) odd += static_cast<char32_t>(random.below(0x3000));
      owners.push_back(static_cast<int32_t>(forms.size())), forms.push_back(odd);
    }
    const std::u32string after = random.one_in(2) ? U"" : random.one_in(2) ? U"answer:" : U"k";
    block = compile_labels(forms, owners, after);
    count = static_cast<int32_t>(forms.size());
  }

  LabelTables tables() const {
    LabelHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    return {header, reinterpret_cast<const uint8_t*>(block.data())};
  }
};

// Rows of ids, int32 and ragged, and the texts that they spell.
struct Rows {
  std::vector<std::string> pieces{"", "a token of more than fifteen bytes: kick"}, texts;
  std::vector<int32_t> ids;
  std::vector<int64_t> offsets{0};

  explicit Rows(Random& random) {
    for (int64_t rows = random.below(6); rows > 0; --rows) {
      const std::string text = random.text(kPieces, 20);
      texts.emplace_back();
      for (size_t at = 0; at < text.size() || random.one_in(3);) {
        const auto size = static_cast<size_t>(random.between(1, 20));
        ids.push_back(random.one_in(8) ? static_cast<int32_t>(random.below(2))
                                       : static_cast<int32_t>(pieces.size()));
        if (ids.back() > 1) pieces.push_back(at < text.size() ? text.substr(at, size) : "");
        texts.back() += pieces[static_cast<size_t>(ids.back())];
        at += size;
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
  }

  int32_t count() const { return static_cast<int32_t>(texts.size()); }
};

struct TokenBlock {
  std::string block;

  explicit TokenBlock(const std::vector<std::string>& pieces)
      : block(compile_tokens({pieces.begin(), pieces.end()})) {}
  TokenTable table() const {
    TokenHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    return {header, reinterpret_cast<const uint8_t*>(block.data())};
  }
};

// One input, in memory of exactly its size.
struct Input {
  Labels labels;
  Rows rows;
  TokenBlock tokens;
  std::vector<std::unique_ptr<Exact<uint8_t>>> texts;
  std::vector<std::string_view> views;
  Exact<int32_t> ids;
  Exact<int64_t> offsets;

  explicit Input(Random& random)
      : labels(random), rows(random), tokens(rows.pieces), ids(rows.ids), offsets(rows.offsets) {
    for (const std::string& text : rows.texts) {
      texts.push_back(std::make_unique<Exact<uint8_t>>(text));
      views.emplace_back(reinterpret_cast<const char*>(texts.back()->data()), text.size());
    }
  }

  IdRows id_rows() const { return {ids.data(), offsets.data(), nullptr, 0, 0, 0}; }
};

// Integers [rows, columns] of two calls but for the columns of tokens.
void same(const Exact<int32_t>& a, const Exact<int32_t>& b, int columns, int token, int last,
          const char* what) {
  for (size_t i = 0; i < a.size(); ++i) {
    const int column = static_cast<int>(i) % columns;
    if ((column < token || column >= last) && a[i] != b[i])
      fail(std::string(what) + " of ids and of text differ");
  }
}

void match_labels(const Input& in, Random& random) {
  const int32_t rows = in.rows.count(), words = (in.labels.count + 31) / 32;
  Exact<int32_t> own(rows), out(rows * kRowInts), again(rows * kRowInts);
  Exact<uint32_t> which(rows * words), which_again(rows * words);
  for (size_t r = 0; r < own.size(); ++r)
    own[r] = static_cast<int32_t>(random.between(-1, in.labels.count - 1));
  label_match_cpu(in.labels.tables(), in.views, {own.data(), out.data(), which.data(), rows, words, 1}, 1);
  Exact<uint32_t> hint(in.rows.pieces.size());
  Exact<int32_t> behind(in.rows.pieces.size());
  compile_hints(in.labels.tables(), in.tokens.table(), hint.data(), behind.data());
  const TokenHints hints =
      random.one_in(3) ? TokenHints{nullptr, nullptr} : TokenHints{hint.data(), behind.data()};
  label_match_ids_cpu(in.labels.tables(), in.tokens.table(), hints, in.id_rows(),
                      {own.data(), again.data(), which_again.data(), rows, words, 1}, 1);
  same(out, again, kRowInts, kFirstToken, kFirstChar, "labels");
  for (size_t i = 0; i < which.size(); ++i)
    if (which[i] != which_again[i]) fail("the labels that occur in ids and in text differ");
}

void match_kind(const Input& in, int32_t kind, Random& random) {
  const int32_t rows = in.rows.count(), most = 3;
  std::vector<int64_t> bounds{0};
  for (int32_t r = 0; r < rows; ++r)
    bounds.push_back(bounds.back() + (in.labels.count ? random.below(most + 1) : 0));
  const auto total = static_cast<size_t>(bounds.back());
  Exact<int64_t> offsets(bounds);
  Exact<double> gold(std::max<size_t>(2 * total, rows)), tolerance(std::max(rows, 1)), score(rows),
      values(2 * rows);
  Exact<int32_t> units(rows), labels(total), common(total + rows);
  for (size_t i = 0; i < gold.size(); ++i) gold[i] = static_cast<double>(random.between(-5, 100));
  for (size_t i = 0; i < units.size(); ++i) units[i] = static_cast<int32_t>(random.between(-2, kUnits - 1));
  for (size_t i = 0; i < total; ++i) labels[i] = static_cast<int32_t>(random.below(in.labels.count));
  const auto pick = static_cast<int32_t>(random.below(3));
  Exact<int32_t> out(rows * kValueRowInts), again(rows * kValueRowInts);
  Exact<int32_t> items(rows * most * kItemInts), items_again(rows * most * kItemInts);
  ValueJob job{gold.data(),
               tolerance.data(),
               tolerance.data(),
               units.data(),
               offsets.data(),
               out.data(),
               values.data(),
               score.data(),
               labels.data(),
               items.data(),
               common.data(),
               rows,
               pick,
               kind,
               most};
  match_values_cpu(in.labels.tables(), in.views, job, 1);
  job.out = again.data();
  job.items = items_again.data();
  match_values_ids_cpu(in.labels.tables(), in.tokens.table(), in.id_rows(), job, 1);
  same(out, again, kValueRowInts, kValueTokens, kValueChars, "values");
  if (kind == kSequence) same(items, items_again, kItemInts, kItemTokens, kItemChars, "items");
}

}  // namespace

// How many rows there were.
int match_case(Random& random) {
  std::unique_ptr<Input> in;
  try {
    in = std::make_unique<Input>(random);
  } catch (const std::invalid_argument&) {
    return 0;  // a label with a separator at its edge
  }
  match_labels(*in, random);
  for (int32_t kind : {kNumber, kInterval, kSequence}) match_kind(*in, kind, random);
  if (in->rows.ids.empty()) return in->rows.count();
  const auto bad = static_cast<size_t>(random.below(static_cast<int64_t>(in->ids.size())));
  in->ids[bad] = random.one_in(2) ? -1 : static_cast<int32_t>(in->rows.pieces.size() + random.below(1 << 20));
  Exact<int32_t> own(in->rows.count()), out(in->rows.count() * kRowInts);
  label_match_ids_cpu(in->labels.tables(), in->tokens.table(), {nullptr, nullptr}, in->id_rows(),
                      {own.data(), out.data(), nullptr, in->rows.count(), 0, 0}, 1);
  int told = 0;
  for (int32_t r = 0; r < in->rows.count(); ++r) told += out[r * kRowInts + kBadToken] >= 0;
  if (told != 1) fail("an id outside the vocabulary is not told");
  return in->rows.count();
}

}  // namespace fuzz
