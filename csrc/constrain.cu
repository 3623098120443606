// constrain on the GPU. What one thread, warp or block owns:
//
//   advance, forced   a thread: one row
//   mask              a block: 8,192 columns of one row. Its 1 KB slice of legal bits is built in shared
//   memory,
//                     then each thread stores 16 bytes of -inf at a time, and reads logits only where bits
//                     mix
//   advance + mask    as mask; every block works out the row's move, the last one that has read writes it
//   fill              a block: 8,192 bits of one row, built the same way
//   sample            a block: one row; candidates are the row's edges, the set bits of a dense row, or all
//
// No kernel reads from the host or waits for it; state moves in place, so that CUDA graphs replay.
#include "constrain_draw.cuh"

namespace vstar {
namespace {

constexpr int kSliceBits = 8192;
constexpr int kSliceWords = kSliceBits / 32;

__global__ void advance_rows(Arena a, RowStates rows, const int64_t* tokens) {
  const int32_t r = blockIdx.x * kThreads + threadIdx.x;
  if (r < rows.rows) move_row(a, rows, r, tokens[r]);
}

__global__ void forced_rows(Arena a, RowStates rows, int64_t* tokens, int32_t* lengths, int32_t most,
                            bool advance) {
  const int32_t r = blockIdx.x * kThreads + threadIdx.x;
  if (r < rows.rows) force_row(a, rows, r, tokens, lengths, most, advance);
}

// Legal bits of columns slice * kSliceBits and on of one row, by the whole block, into shared memory.
__device__ void build_slice(const Arena& a, int32_t state, int32_t remaining, int32_t slice, uint32_t* bits) {
  const int32_t base = slice * kSliceBits;
  const int32_t words = min(kSliceWords, a.words - slice * kSliceWords);
  if (state >= 0 && state < a.dense) {
    const int32_t last = a.first[state + 1];
    for (int32_t w = threadIdx.x; w < words; w += kThreads) {
      const int32_t column = base + w * 32;
      const int32_t low = lower_edge(a, a.first[state], last, column);
      bits[w] = dense_word(a, state, slice * kSliceWords + w, remaining, low,
                           lower_edge(a, low, last, column + 32));
    }
    __syncthreads();
    return;
  }
  for (int32_t w = threadIdx.x; w < kSliceWords; w += kThreads) bits[w] = 0;
  __syncthreads();
  if (state < 0) {
    for (int32_t i = threadIdx.x; i < a.eos_count; i += kThreads) {
      const int32_t at = a.eos[i] - base;
      if (at >= 0 && at < kSliceBits) atomicOr(bits + (at >> 5), 1u << (at & 31));
    }
  } else {
    const int32_t last = a.first[state + 1], low = lower_edge(a, a.first[state], last, base);
    const int32_t high = lower_edge(a, low, last, base + kSliceBits);
    for (int32_t e = low + static_cast<int32_t>(threadIdx.x); e < high; e += kThreads) {
      if (!is_legal(a, a.next[e], remaining)) continue;
      const int32_t at = token_of(a, e) - base;
      atomicOr(bits + (at >> 5), 1u << (at & 31));
    }
  }
  __syncthreads();
}

template <class T>
__device__ void store_slice(T* x, int32_t count, T low, const uint32_t* bits) {
  constexpr int32_t lanes = 16 / sizeof(T);
  constexpr uint32_t full = (1u << lanes) - 1;
  union Vector {
    uint4 whole;
    T parts[lanes];
  };
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  for (int32_t at = threadIdx.x * lanes; at < count; at += kThreads * lanes) {
    const uint32_t keep = bits[at >> 5] >> (at & 31) & full;
    if (keep == full) continue;
    if (!aligned || at + lanes > count) {
      for (int32_t i = 0; i < lanes && at + i < count; ++i)
        if (!(keep >> i & 1)) x[at + i] = low;
      continue;
    }
    Vector v;
    if (keep) v.whole = *reinterpret_cast<const uint4*>(x + at);
#pragma unroll
    for (int32_t i = 0; i < lanes; ++i)
      if (!(keep >> i & 1)) v.parts[i] = low;
    *reinterpret_cast<uint4*>(x + at) = v.whole;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    mask_rows(Arena a, RowStates rows, T* data, int64_t stride, T low) {
  __shared__ uint32_t bits[kSliceWords];
  const int32_t r = blockIdx.x, slice = blockIdx.y;
  const int32_t state = state_within(rows.state[r], rows.remaining[r]);
  if (state == kFree) return;
  build_slice(a, state, rows.remaining[r], slice, bits);
  const int32_t base = slice * kSliceBits;
  store_slice(data + r * stride + base, min(kSliceBits, a.vocabulary - base), low, bits);
}

// `tickets` [rows] are zeros before and after: blocks of a row that have read its state.
template <class T>
__global__ void __launch_bounds__(kThreads)
    advance_mask_rows(Arena a, RowStates rows, const int64_t* tokens, int32_t* tickets, int32_t slices,
                      T* data, int64_t stride, T low) {
  __shared__ uint32_t bits[kSliceWords];
  const int32_t r = blockIdx.x, slice = blockIdx.y;
  const int32_t before = rows.state[r], left = rows.remaining[r];
  const int32_t after = after_token(a, before, tokens[r], left), remaining = remaining_after(before, left);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(tickets + r, 1) == slices - 1) {
      tickets[r] = 0;
      rows.state[r] = after;
      rows.remaining[r] = remaining;
      rows.step[r] += 1;
    }
  }
  const int32_t state = state_within(after, remaining);
  if (state == kFree) return;
  build_slice(a, state, remaining, slice, bits);
  const int32_t base = slice * kSliceBits;
  store_slice(data + r * stride + base, min(kSliceBits, a.vocabulary - base), low, bits);
}

__global__ void __launch_bounds__(kThreads)
    fill_rows(Arena a, RowStates rows, uint32_t* out, int64_t stride) {
  __shared__ uint32_t bits[kSliceWords];
  const int32_t r = blockIdx.x, slice = blockIdx.y;
  const int32_t state = state_within(rows.state[r], rows.remaining[r]);
  const int32_t words = min(kSliceWords, a.words - slice * kSliceWords);
  if (state != kFree) build_slice(a, state, rows.remaining[r], slice, bits);
  uint32_t* row = out + r * stride + slice * kSliceWords;
  for (int32_t w = threadIdx.x; w < words; w += kThreads) row[w] = state == kFree ? ~0u : bits[w];
}

}  // namespace

#ifdef __CUDACC__
namespace {

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

int blocks_of(int32_t rows) { return (rows + kThreads - 1) / kThreads; }

dim3 slices_of(const Arena& a, int32_t rows) {
  return dim3(static_cast<unsigned>(rows),
              static_cast<unsigned>((a.vocabulary + kSliceBits - 1) / kSliceBits));
}

}  // namespace

void constrain_advance_cuda(const Arena& a, const RowStates& rows, const int64_t* tokens, uintptr_t stream) {
  advance_rows<<<blocks_of(rows.rows), kThreads, 0, stream_of(stream)>>>(a, rows, tokens);
  check_cuda(cudaGetLastError(), "constrain advance");
}

void constrain_mask_cuda(const Arena& a, const RowStates& rows, const LogitsRows& logits, uintptr_t stream) {
  const dim3 grid = slices_of(a, rows.rows);
  if (logits.type == LogitsType::kFloat32) {
    auto* data = static_cast<uint32_t*>(logits.data);
    mask_rows<uint32_t><<<grid, kThreads, 0, stream_of(stream)>>>(a, rows, data, logits.stride, 0xFF800000u);
  } else {
    auto* data = static_cast<uint16_t*>(logits.data);
    const uint16_t low = logits.type == LogitsType::kFloat16 ? 0xFC00 : 0xFF80;
    mask_rows<uint16_t><<<grid, kThreads, 0, stream_of(stream)>>>(a, rows, data, logits.stride, low);
  }
  check_cuda(cudaGetLastError(), "constrain mask");
}

void constrain_advance_mask_cuda(const Arena& a, const RowStates& rows, const int64_t* tokens,
                                 int32_t* tickets, const LogitsRows& logits, uintptr_t stream) {
  const dim3 grid = slices_of(a, rows.rows);
  const auto slices = static_cast<int32_t>(grid.y);
  if (logits.type == LogitsType::kFloat32) {
    auto* data = static_cast<uint32_t*>(logits.data);
    advance_mask_rows<uint32_t><<<grid, kThreads, 0, stream_of(stream)>>>(a, rows, tokens, tickets, slices,
                                                                          data, logits.stride, 0xFF800000u);
  } else {
    auto* data = static_cast<uint16_t*>(logits.data);
    const uint16_t low = logits.type == LogitsType::kFloat16 ? 0xFC00 : 0xFF80;
    advance_mask_rows<uint16_t><<<grid, kThreads, 0, stream_of(stream)>>>(a, rows, tokens, tickets, slices,
                                                                          data, logits.stride, low);
  }
  check_cuda(cudaGetLastError(), "constrain advance and mask");
}

void constrain_sample_cuda(const Arena& a, const RowStates& rows, const LogitsRows& logits,
                           const DrawRows& draw, uintptr_t stream) {
  sample_rows<<<rows.rows, kThreads, 0, stream_of(stream)>>>(a, rows, logits, draw);
  check_cuda(cudaGetLastError(), "constrain sample");
}

void constrain_forced_cuda(const Arena& a, const RowStates& rows, int64_t* tokens, int32_t* lengths,
                           int32_t most, bool advance, uintptr_t stream) {
  forced_rows<<<blocks_of(rows.rows), kThreads, 0, stream_of(stream)>>>(a, rows, tokens, lengths, most,
                                                                        advance);
  check_cuda(cudaGetLastError(), "constrain forced");
}

void constrain_fill_cuda(const Arena& a, const RowStates& rows, uint32_t* out, int64_t stride,
                         uintptr_t stream) {
  fill_rows<<<slices_of(a, rows.rows), kThreads, 0, stream_of(stream)>>>(a, rows, out, stride);
  check_cuda(cudaGetLastError(), "constrain fill");
}
#endif

}  // namespace vstar
