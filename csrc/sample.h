// sample: the next token of each row, drawn by integers that are the same on every backend.
// kernels/sample/reference.py is the specification; the constants here are its constants.
#pragma once

#include <cstdint>

namespace vstar {

struct SampleRows {
  const float* logits;   // [rows, columns] as the model gave them
  const float* allowed;  // the same, with -inf where top-k or top-p leaves a token out
  const int64_t* seeds;  // [rows]
  int64_t* ids;          // [rows] -1 for a row that has NaN, +inf or nothing but -inf
  float* logprobs;       // [rows] log-softmax of `logits` at the id
  int32_t rows, columns;
  int64_t logits_stride, allowed_stride;  // elements from row to row
};

// `scale` is log2(e) / temperature, or 0 for greedy.
void sample_cpu(const SampleRows& rows, uint64_t step, float scale, int threads);

}  // namespace vstar
