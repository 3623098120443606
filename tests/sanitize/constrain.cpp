// Programs that no template writes, and compiled grammars cut, damaged or of a foreign version: each is
// refused with std::invalid_argument, or gives a grammar that can be used.
#include "../../csrc/constrain.h"

#include <cmath>
#include <stdexcept>

#include "../../csrc/constrain_compile.h"
#include "random.h"

namespace fuzz {
namespace {

using namespace vstar;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_string(std::string& out, const std::string& text) {
  put<uint32_t>(out, static_cast<uint32_t>(text.size()));
  out += text;
}

const std::vector<std::string> kWords{"a",        "ab",      "b ", "snow", "board",
                                      "\xC3\xA9", "Answer:", "1",  "\n",   " "};

class ProgramWriter {
 public:
  explicit ProgramWriter(Random& random) : random_(random) {}

  std::string write() {
    node(0);
    return out_;
  }

 private:
  void node(int depth) {
    const std::string kinds = depth > 3 ? "LCKN" : "LCKNTISAR";
    const char kind = kinds[random_.below(static_cast<int64_t>(kinds.size()))];
    out_ += kind;
    switch (kind) {
      case 'L':
        return put_string(out_, random_.text(kWords, 3));
      case 'C':
        return byte_class();
      case 'K':
        return choice();
      case 'T':
        return text();
      case 'N':
        return range(false);
      case 'I':
        return range(true);
      case 'R':
        times();
        return node(depth + 1);
      default:
        const auto parts = static_cast<uint32_t>(random_.between(1, 3));
        put(out_, parts);
        for (uint32_t i = 0; i < parts; ++i) node(depth + 1);
    }
  }

  // Least and most; most of the time in order.
  void times() {
    const auto least = random_.number<int32_t>();
    put(out_, least);
    put(out_, random_.one_in(3)   ? -1
              : random_.one_in(9) ? random_.number<int32_t>()
                                  : static_cast<int32_t>(least + static_cast<uint32_t>(random_.below(4))));
  }

  void byte_class() {
    const auto ranges = static_cast<uint32_t>(random_.between(1, 3));
    put(out_, ranges);
    for (uint32_t i = 0; i < ranges; ++i) {
      const auto low = static_cast<uint8_t>(random_.below(256));
      put(out_, low);
      put(out_, static_cast<uint8_t>(random_.between(low, 255)));
    }
  }

  void choice() {
    std::vector<std::string> names(static_cast<size_t>(random_.between(1, 6)));
    for (std::string& name : names) name = random_.text(kWords, 4);
    put<uint32_t>(out_, static_cast<uint32_t>(names.size()));
    for (const std::string& name : names) put<uint32_t>(out_, static_cast<uint32_t>(name.size()));
    for (const std::string& name : names) out_ += name;
  }

  void text() {
    times();
    const auto triggers = static_cast<uint32_t>(random_.below(3));
    put(out_, triggers);
    for (uint32_t i = 0; i < triggers; ++i) put_string(out_, random_.text(kWords, 2));
  }

  void range(bool interval) {
    put<int32_t>(out_,
                 random_.one_in(9) ? random_.number<int32_t>() : static_cast<int32_t>(random_.between(1, 3)));
    std::string tail;
    for (int64_t n = random_.below(5); n > 0; --n)
      tail += random_.one_in(3) ? ':' : static_cast<char>(random_.one_in(6) ? random_.below(16) : 10);
    put_string(out_, tail);
    const auto low = random_.number<int64_t>();
    put(out_, low);
    put(out_, random_.one_in(8) ? random_.number<int64_t>()
                                : static_cast<int64_t>(static_cast<uint64_t>(low) + random_.below(300)));
    if (!interval) return;
    put(out_, random_.number<int64_t>());
    put_string(out_, random_.text(kWords, 2));
  }

  Random& random_;
  std::string out_;
};

// All bytes, some words (one of them twice), a token that is no text, one or two ends, and padded columns.
std::string make_vocab(Random& random) {
  std::vector<std::string> pieces;
  for (int b = 0; b < 256; ++b)
    if (!random.one_in(200)) pieces.emplace_back(1, static_cast<char>(b));
  for (int64_t n = random.below(40); n > 0; --n) pieces.push_back(random.text(kWords, 3));
  pieces.emplace_back();
  const auto count = static_cast<int32_t>(pieces.size());
  std::vector<int32_t> ends{count - 1};
  if (random.one_in(3)) ends.push_back(count);
  const std::vector<std::string_view> views(pieces.begin(), pieces.end());
  return build_vocab(views, ends,
                     static_cast<int32_t>(count + 1 + (random.one_in(50) ? 70'000 : random.below(70))));
}

// Every operation, a few steps along.
void use(const Arena& a, int32_t start, Random& random) {
  constexpr int32_t kRows = 3;
  Exact<int32_t> state(kRows), remaining(kRows), step(kRows), filled(kRows), lengths(kRows);
  Exact<int64_t> tokens(kRows), seeds(kRows), ids(kRows), forced(kRows * 5);
  Exact<float> logits(kRows * a.vocabulary), logprobs(kRows);
  Exact<uint32_t> bits(kRows * a.words);
  const RowStates rows{state.data(), remaining.data(), step.data(), kRows};
  for (int32_t r = 0; r < kRows; ++r) {
    state[r] = start;
    remaining[r] = random.one_in(2) ? kUnlimited : static_cast<int32_t>(random.below(20));
    filled[r] = kUnknownFill;
  }
  const LogitsRows view{logits.data(), LogitsType::kFloat32, a.vocabulary};
  for (int steps = 0; steps < 5; ++steps) {
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(random.below(1000)) / 100;
    constrain_fill_cpu(a, rows, bits.data(), a.words, filled.data());
    constrain_mask_cpu(a, rows, view, 1);
    for (int32_t r = 0; r < kRows; ++r)
      for (int32_t v = 0; v < a.vocabulary; ++v)
        if (state[r] != kFree &&
            bit_of(bits.data() + r * a.words, v) == std::isinf(logits[r * a.vocabulary + v]))
          fail("bits and masked logits differ");
    constrain_forced_cpu(a, rows, forced.data(), lengths.data(), 5, random.one_in(3));
    if (random.one_in(2)) {
      const float scale = random.one_in(3) ? 0.0f : 1.5f;
      const DrawRows draw{seeds.data(),
                          ids.data(),
                          logprobs.data(),
                          scale,
                          1ull << (62 - random.below(2)),
                          static_cast<int32_t>(random.below(4))};
      constrain_sample_cpu(a, rows, view, draw, 1);
    } else {
      for (size_t r = 0; r < kRows; ++r)
        tokens[r] = random.one_in(9) ? random.number<int64_t>() : random.below(300);
      constrain_advance_cpu(a, rows, tokens.data());
    }
  }
}

// A grammar from outside: used when the check lets it through.
bool load(const std::string& block, Random& random) {
  const Exact<uint8_t> copy(block);
  try {
    check_arena(block);
  } catch (const std::invalid_argument&) {
    return false;
  }
  ArenaHeader header;
  std::memcpy(&header, copy.data(), sizeof header);
  use(Arena(header, copy.data()), header.start, random);
  std::vector<int32_t> starts;
  const std::string joined = join_arenas({block, block}, starts);
  std::memcpy(&header, joined.data(), sizeof header);
  check_arena(joined);
  use(Arena(header, reinterpret_cast<const uint8_t*>(joined.data())), starts[1], random);
  return true;
}

// With its checksum made right again, so that the checks behind it are reached.
std::string resigned(std::string block) {
  if (block.size() < sizeof(ArenaHeader)) return block;
  ArenaHeader header;
  std::memcpy(&header, block.data(), sizeof header);
  if (header.magic == kArenaMagic) header.bytes = static_cast<int32_t>(block.size());
  header.checksum = 0;
  std::memcpy(&block[0], &header, sizeof header);
  header.checksum = arena_checksum(block);
  std::memcpy(&block[0], &header, sizeof header);
  return block;
}

std::string compile(const Vocab& vocab, Random& random) {
  std::string program = ProgramWriter(random).write();
  if (random.one_in(3)) program = damaged(program, random);
  if (random.one_in(4)) {
    std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(random.below(5)));
    for (auto& sequence : sequences)
      for (int64_t n = random.below(5); n > 0; --n)
        sequence.push_back(static_cast<int32_t>(random.below(256)));
    return compile_sequences(random.one_in(2) ? "" : program, sequences, vocab);
  }
  return compile_program(program, vocab, nullptr);
}

}  // namespace

// How many grammars could be used.
int constrain_case(Random& random) {
  const std::string vocabulary = make_vocab(random);
  const Vocab vocab(reinterpret_cast<const uint8_t*>(vocabulary.data()));
  std::string block;
  try {
    block = compile(vocab, random);
  } catch (const std::invalid_argument&) {
    return 0;
  }
  if (!load(block, random)) fail("a grammar that was just compiled is refused");
  int used = 1;
  for (int i = 0; i < 6; ++i) {
    const std::string bad = damaged(block, random);
    used += load(random.one_in(4) ? bad : resigned(bad), random);
  }
  return used;
}

}  // namespace fuzz
