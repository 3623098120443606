// Fuzzes the C++ core, built with the address and the undefined-behaviour sanitizer: `fuzz SECONDS [SEED
// [CASES]]`.
//
// Every case is made of its own seed, which is told when something is wrong: `fuzz 0 SEED 1` runs it again.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "random.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)());
extern "C" const char* __asan_default_options() { return "handle_abort=1:hard_rss_limit_mb=4096"; }

namespace fuzz {

int constrain_case(Random& random);
int match_case(Random& random);

namespace {
uint64_t seed_now = 0;

void tell() { std::fprintf(stderr, "the case: fuzz 0 %llu 1\n", static_cast<unsigned long long>(seed_now)); }
}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "FAIL: %s\n", what.c_str());
  tell();
  std::abort();
}

}  // namespace fuzz

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  const uint64_t cases = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  __sanitizer_set_death_callback(fuzz::tell);
  std::fprintf(stderr, "from seed %llu\n", static_cast<unsigned long long>(first));
  const auto began = Clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
  long long grammars = 0, rows = 0, done = 0;
  double slowest = 0;
  uint64_t slow = first;
  for (fuzz::seed_now = first; static_cast<uint64_t>(done) < cases || spent() < seconds;
       ++fuzz::seed_now, ++done) {
    const double at = spent();
    fuzz::Random random(fuzz::seed_now);
    try {
      grammars += fuzz::constrain_case(random);
      rows += fuzz::match_case(random);
    } catch (const std::exception& error) {
      fuzz::fail(std::string("an exception of another kind: ") + error.what());
    }
    if (spent() - at > slowest) slowest = spent() - at, slow = fuzz::seed_now;
  }
  std::printf(
      "%lld cases from seed %llu in %.0f s: %lld grammars used, %lld rows matched; %.1f s went to seed "
      "%llu\n",
      done, static_cast<unsigned long long>(first), spent(), grammars, rows, slowest,
      static_cast<unsigned long long>(slow));
  if (argc <= 3 && (grammars == 0 || rows == 0)) {
    std::fprintf(stderr, "FAIL: nothing was compiled or matched\n");
    return 1;
  }
  return 0;
}
