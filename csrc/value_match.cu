// match_number and match_interval on the GPU: one thread owns one row, and runs what the CPU runs.
#include "value_match.h"

namespace vstar {
namespace {

constexpr int kThreads = 128;

__global__ void match_values(LabelTables t, TextRows texts, ValueJob job, bool interval) {
  const int32_t r = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= job.rows) return;
  const uint8_t* text = texts.text + texts.offsets[r];
  const auto end = static_cast<int32_t>(texts.offsets[r + 1] - texts.offsets[r]);
  interval ? interval_row(t, text, end, job, r) : number_row(t, text, end, job, r);
}

}  // namespace

void match_values_cuda(const LabelTables& tables, const TextRows& texts, const ValueJob& job, bool interval,
                       uintptr_t stream) {
  if (job.rows == 0) return;
  const int blocks = (job.rows + kThreads - 1) / kThreads;
  match_values<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(tables, texts, job, interval);
  check_cuda(cudaGetLastError(), "match_number or match_interval");
}

}  // namespace vstar
