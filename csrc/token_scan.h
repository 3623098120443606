// The hints of a row of ids looked up: which tokens are worth reading, and at which byte each one ends.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vstar {

struct TokenMasks {
  std::vector<int32_t> ends;      // bytes of the row up to the end of each token, and room for 15 more
  std::vector<uint64_t> label;    // bit i % 64 of word i / 64: a label may begin in token i
  std::vector<uint64_t> literal;  // the literal may begin in token i
  bool ascii = true;

  void fit(int32_t count);
};

struct ScanJob {
  const void* ids;
  const uint32_t* hint;  // of each id, see token_text.h
  int32_t count, vocabulary;
  bool wide;  // ids are int64
};

// Fills `masks`, which fits job.count; returns the position of the first id outside the vocabulary, or -1.
using TokenScan = int32_t (*)(const ScanJob& job, TokenMasks& masks);

TokenScan token_scan();                         // the fastest one this CPU runs
TokenScan token_scan(const std::string& name);  // one of token_scan_names(); throws std::invalid_argument
std::vector<std::string> token_scan_names();    // "portable", and "avx2", "avx512" where the CPU has them

}  // namespace vstar
