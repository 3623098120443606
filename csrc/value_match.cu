// match_number, match_interval and match_sequence on the GPU: one thread owns one row, and runs what the CPU
// runs. Rows of ids are first spread into the thread's own scratch; the threads take turns over the rows.
#include "value_match.h"

namespace vstar {
namespace {

constexpr int kThreads = 128;

__global__ void match_values(LabelTables t, TextRows texts, ValueJob job) {
  const int32_t r = blockIdx.x * kThreads + threadIdx.x;
  if (r >= job.rows) return;
  const auto end = static_cast<int32_t>(texts.offsets[r + 1] - texts.offsets[r]);
  match_value(t, {texts.text + texts.offsets[r], end, -1}, job, r, nullptr, nullptr);
}

__device__ RowText spell_row(const TokenTable& tokens, const IdRows& ids, int32_t r, uint8_t* scratch) {
  const int32_t count = ids.length(r);
  const int64_t begin = ids.begin(r);
  int32_t used = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t id = ids.id(begin + i);
    if (id < 0 || id >= tokens.count) return {nullptr, 0, i};
    const TokenPiece piece = token_piece(tokens, id);
    for (int32_t k = 0; k < piece.size; ++k) scratch[used + k] = piece.bytes[k];
    used += piece.size;
  }
  return {scratch, used, -1};
}

__global__ void match_id_values(LabelTables t, TokenTable tokens, IdRows ids, ValueJob job, uint8_t* scratch,
                                int64_t scratch_bytes, int32_t workers) {
  const int32_t worker = blockIdx.x * kThreads + threadIdx.x;
  if (worker >= workers) return;
  for (int32_t r = worker; r < job.rows; r += workers)
    match_value(t, spell_row(tokens, ids, r, scratch + worker * scratch_bytes), job, r, &tokens, &ids);
}

}  // namespace

#ifdef __CUDACC__
void match_values_cuda(const LabelTables& tables, const TextRows& texts, const ValueJob& job,
                       uintptr_t stream) {
  if (job.rows == 0) return;
  const int blocks = (job.rows + kThreads - 1) / kThreads;
  match_values<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(tables, texts, job);
  check_cuda(cudaGetLastError(), "a match of values");
}

void match_values_ids_cuda(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                           const ValueJob& job, uint8_t* scratch, int64_t scratch_bytes, int32_t workers,
                           uintptr_t stream) {
  if (job.rows == 0) return;
  const int blocks = (workers + kThreads - 1) / kThreads;
  match_id_values<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      tables, tokens, ids, job, scratch, scratch_bytes, workers);
  check_cuda(cudaGetLastError(), "a match of values in ids");
}
#endif

}  // namespace vstar
