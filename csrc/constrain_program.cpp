// Reads a program, the bytes that the Python templates write (kernels/constrain/program.py), into an Nfa.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "constrain_compile.h"

namespace vstar {
namespace {

constexpr int kMostDepth = 200;
constexpr int32_t kMostDigits = 18;
constexpr int32_t kMostStarts = kMostStates < (1 << 17) ? kMostStates : 1 << 17;
constexpr int32_t kMostCharacters = kMostStates < (1 << 16) ? kMostStates : 1 << 16;
constexpr size_t kMostTail = 64;
constexpr int64_t kLargest = 100'000'000'000'000'000;  // of n in a layout

class Reader {
 public:
  Reader(std::string_view program, Nfa& nfa) : left_(program), nfa_(nfa) {}

  // The node at the read position, between two states.
  void node(int32_t from, int32_t to, int depth = 0) {
    if (depth > kMostDepth || static_cast<int32_t>(nfa_.head.size()) > kMostStates)
      fail("is nested or large");
    switch (number<uint8_t>()) {
      case 'L':
        return literal(from, to);
      case 'C':
        return byte_class(from, to);
      case 'S':
        return sequence(from, to, depth);
      case 'A':
        for (uint32_t n = number<uint32_t>(); n > 0; --n) node(from, to, depth + 1);
        return;
      case 'R':
        return repeat(from, to, depth);
      case 'K':
        return choice(from, to);
      case 'T':
        return text(from, to);
      case 'N':
        return range(from, to);
      case 'I':
        return interval(from, to);
      default:
        fail("has an unknown node");
    }
  }

  bool done() const { return left_.empty(); }

 private:
  [[noreturn]] static void fail(const char* what) {
    throw std::invalid_argument(std::string("the template's program ") + what);
  }

  std::string_view bytes(size_t count) {
    if (left_.size() < count) fail("ends early");
    const std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof value).data(), sizeof value);
    return value;
  }

  std::string_view string() { return bytes(number<uint32_t>()); }

  void literal(int32_t from, int32_t to) {
    for (char c : string()) {
      const int32_t next = nfa_.state();
      nfa_.edge(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), next);
      from = next;
    }
    nfa_.epsilon(from, to);
  }

  void byte_class(int32_t from, int32_t to) {
    const uint32_t ranges = number<uint32_t>();
    for (uint32_t i = 0; i < ranges; ++i) {
      const auto low = number<uint8_t>(), high = number<uint8_t>();
      if (low > high) fail("has a byte range that is reversed");
      nfa_.edge(from, low, high, to);
    }
  }

  void sequence(int32_t from, int32_t to, int depth) {
    for (uint32_t n = number<uint32_t>(); n > 0; --n) {
      const int32_t next = nfa_.state();
      node(from, next, depth + 1);
      from = next;
    }
    nfa_.epsilon(from, to);
  }

  void repeat(int32_t from, int32_t to, int depth) {
    const auto least = number<int32_t>(), most = number<int32_t>();
    if (least < 0 || (most >= 0 && most < least)) fail("repeats a negative number of times");
    const std::string_view body = left_;
    std::string_view behind = body;
    for (int32_t i = 0; i < std::max({least, most, 1}); ++i) {
      if (most == 0) break;
      if (i >= least && most >= 0) nfa_.epsilon(from, to);
      left_ = body;
      const int32_t start = nfa_.state(), next = nfa_.state();
      nfa_.epsilon(from, start);
      if (most < 0 && i + 1 >= least) nfa_.epsilon(next, start);
      if (most < 0 && least == 0) nfa_.epsilon(from, to);
      node(start, next, depth + 1);
      behind = left_;
      from = next;
    }
    if (most == 0) {
      node(nfa_.state(), nfa_.state(), depth + 1);
      behind = left_;
    }
    left_ = behind;
    nfa_.epsilon(from, to);
  }

  void choice(int32_t from, int32_t to) {
    const uint32_t count = number<uint32_t>();
    const std::string_view table = bytes(static_cast<size_t>(count) * 4);
    std::vector<std::string_view> names(count);
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t size;
      std::memcpy(&size, table.data() + 4 * i, 4);
      names[i] = bytes(size);
    }
    if (!std::is_sorted(names.begin(), names.end())) std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    Dag dag;
    SortedBuilder builder(dag);
    for (std::string_view name : names)
      builder.add(reinterpret_cast<const uint8_t*>(name.data()), name.size());
    const int32_t start = builder.finish();
    nfa_.epsilon(from, nfa_.insert(dag, start, to));
  }

  void text(int32_t from, int32_t to) {
    TextSpec spec;
    spec.least = number<int32_t>();
    spec.most = number<int32_t>();
    if (spec.least > kMostCharacters || spec.most > kMostCharacters) fail("counts too many characters");
    for (uint32_t n = number<uint32_t>(); n > 0; --n) spec.until.emplace_back(string());
    add_text(nfa_, spec, from, to);
  }

  // All numbers in it, and one digit more, fit 64 bits.
  NumberLayout layout() {
    NumberLayout made;
    made.lead = number<int32_t>();
    if (made.lead < 1 || made.lead > kMostDigits) fail("has a number of too many digits");
    int64_t scale = 1;
    for (int32_t i = 0; i < made.lead; ++i) scale *= 10;
    for (char c : string()) {
      made.tail.push_back(static_cast<uint8_t>(c));
      if (made.tail.back() > 10) continue;
      if (made.tail.back() == 0) fail("has a digit of radix 0");
      if (scale > 10 * kLargest / made.tail.back()) fail("has a number of too many digits");
      scale *= made.tail.back();
    }
    if (made.tail.size() > kMostTail) fail("has a number of too many digits");
    return made;
  }

  void range(int32_t from, int32_t to) {
    const NumberLayout written = layout();
    const auto low = number<int64_t>(), high = number<int64_t>();
    if (low < 0 || high < low || high > kLargest) fail("has an empty number range, or one that is too large");
    Dag dag;
    const int32_t start = RangeBuilder(dag, written).range(low, high);
    nfa_.epsilon(from, nfa_.insert(dag, start, to));
  }

  // Each start leads to an automaton of its own for the ends; equal parts of those are one.
  void interval(int32_t from, int32_t to) {
    const NumberLayout written = layout();
    const auto low = number<int64_t>(), high = number<int64_t>(), least = number<int64_t>();
    const std::string separator(string());
    if (low < 0 || least < 0 || high < 0 || high > kLargest || high - least < low || separator.empty())
      fail("has an empty interval, or one that is too large");
    if (high - least - low >= kMostStarts) fail("has an interval with too many starts");
    Dag dag;
    RangeBuilder numbers(dag, written);
    std::vector<std::pair<std::string, int32_t>> starts;
    for (int64_t n = low; n + least <= high; ++n)
      starts.emplace_back(numbers.write(n) + separator, numbers.range(n + least, high));
    std::sort(starts.begin(), starts.end());
    SortedBuilder builder(dag);
    for (const auto& [text, ends] : starts)
      builder.add(reinterpret_cast<const uint8_t*>(text.data()), text.size(), ends);
    const int32_t start = builder.finish();
    nfa_.epsilon(from, nfa_.insert(dag, start, to));
  }

  std::string_view left_;
  Nfa& nfa_;
};

}  // namespace

Nfa read_program(std::string_view program) {
  Nfa nfa;
  nfa.start = nfa.state();
  nfa.accept = nfa.state();
  Reader reader(program, nfa);
  reader.node(nfa.start, nfa.accept);
  if (!reader.done()) throw std::invalid_argument("the template's program has bytes behind its end");
  return nfa;
}

}  // namespace vstar
