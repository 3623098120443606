// Random numbers, bytes and texts of the fuzzer; a case is made of one seed alone, so that it can be run
// again.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }

  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[below(static_cast<int64_t>(from.size()))];
  }

  // Small most of the time, sometimes anything.
  template <class T>
  T number() {
    const uint64_t any = engine_() >> below(64);
    T value;
    std::memcpy(&value, &any, sizeof value);
    return one_in(10) ? value : static_cast<T>(below(6));
  }

  std::string bytes(int64_t most) {
    std::string out(static_cast<size_t>(below(most + 1)), '\0');
    for (char& c : out) c = static_cast<char>(below(256));
    return out;
  }

  // Pieces that mean something to a reader, with broken bytes among them.
  std::string text(const std::vector<std::string>& pieces, int64_t most) {
    std::string out;
    for (int64_t n = below(most + 1); n > 0; --n) out += one_in(12) ? bytes(3) : pick(pieces);
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

// A few bytes changed, cut off, doubled or added.
inline std::string damaged(std::string data, Random& random) {
  for (int64_t n = random.between(1, 4); n > 0 && !data.empty(); --n) {
    const auto at = static_cast<size_t>(random.below(static_cast<int64_t>(data.size())));
    switch (random.below(6)) {
      case 0:
        data.resize(at);
        break;
      case 1:
        data.insert(at, random.bytes(8));
        break;
      case 2:
        data.insert(at, data.substr(at / 2, 16));
        break;
      default:
        data[at] =
            static_cast<char>(random.one_in(2) ? data[at] ^ (1 << random.below(8)) : random.below(256));
    }
  }
  return data;
}

// Memory of exactly as many bytes as there are values: one read too far is seen.
template <class T>
class Exact {
 public:
  explicit Exact(size_t count) : values_(new T[count]()), count_(count) {}
  template <class Values, class = decltype(std::declval<Values>().size())>
  explicit Exact(const Values& from) : Exact(from.size()) {
    for (size_t i = 0; i < count_; ++i) values_[i] = static_cast<T>(from[i]);
  }
  ~Exact() { delete[] values_; }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  T* data() const { return values_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return values_[i]; }

 private:
  T* values_;
  size_t count_;
};

[[noreturn]] void fail(const std::string& what);  // says the case and ends the process

}  // namespace fuzz
