// Which bytes of a text are ASCII letters or digits, and which are not ASCII: bit i % 64 of word i / 64 for
// byte i.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vstar {

// Writes (size + 63) / 64 words to each of `word` and `high`; bits past the end are 0. Reads only text[0 ..
// size).
using WordMasks = void (*)(const uint8_t* text, int32_t size, uint64_t* word, uint64_t* high);

WordMasks word_masks();                         // the fastest one this CPU runs
WordMasks word_masks(const std::string& name);  // one of word_mask_names(); throws std::invalid_argument
std::vector<std::string> word_mask_names();     // "portable", and "avx2", "avx512" where the CPU has them

}  // namespace vstar
