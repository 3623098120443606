// label_match on the GPU: one warp owns one row; its lanes test 32 neighbouring start positions at a time.
//
//   row r   |b a c k f l i p   t h e n   a   k i c k|
//   lanes    0 1 2 3 ...                           31     then the next 32 bytes, until the row ends
//
// A lane whose byte starts a label walks the trie alone. What the row needs (first, last, whether a longer
// label covers it) is joined by ballots and one prefix maximum per 32 bytes, in the order of the CPU's loop,
// so that both give the same integers.
#include "label_match.h"

namespace vstar {
namespace {

constexpr int kWarp = 32;
constexpr int kRowsPerBlock = 4;
constexpr unsigned kAll = 0xFFFFFFFFu;

// Byte after the last place where the literal stands, -1 when it does not, 0 when there is no literal.
__device__ int32_t search_start(const LabelTables& t, const uint8_t* text, int32_t end, int lane) {
  if (t.after_length == 0) return 0;
  for (int32_t top = end - 1; top >= 0; top -= kWarp) {
    const int32_t p = top - lane;
    const int32_t stop = p >= 0 ? literal_end(t, text, p, end) : -1;
    const unsigned found = __ballot_sync(kAll, stop >= 0);
    if (found) return __shfl_sync(kAll, stop, __ffs(found) - 1);
  }
  return -1;
}

// Maximum of `value` over the lanes below this one, and `all` over the whole warp.
__device__ int32_t max_before(int32_t value, int lane, int32_t* all) {
  int32_t upto = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(kAll, upto, step);
    if (lane >= step) upto = max(upto, other);
  }
  *all = __shfl_sync(kAll, upto, kWarp - 1);
  const int32_t before = __shfl_up_sync(kAll, upto, 1);
  return lane == 0 ? 0 : before;
}

__global__ void match_rows(LabelTables t, LabelRows rows) {
  const int lane = threadIdx.x % kWarp;
  const int32_t r = blockIdx.x * kRowsPerBlock + threadIdx.x / kWarp;
  if (r >= rows.rows) return;
  const uint8_t* text = rows.text + rows.offsets[r];
  const int32_t end = static_cast<int32_t>(rows.offsets[r + 1] - rows.offsets[r]);
  const int32_t own = rows.own[r];
  uint32_t* which = rows.which ? rows.which + static_cast<int64_t>(r) * rows.which_words : nullptr;
  const auto seen = [which](int32_t label) {
    if (which) atomicOr(which + (label >> 5), 1u << (label & 31));
  };
  int32_t first_begin = -1, first_end = -1, last_begin = -1, last_end = -1, longest = 0;
  bool outside = false;
  const int32_t start = search_start(t, text, end, lane);
  for (int32_t base = start; start >= 0 && base < end; base += kWarp) {
    const int32_t p = base + lane;
    Ends ends{0, 0};
    if (p < end && !word_before(t, text, p))
      ends = match_from(t, text, read_char(t, text, p, end), end, own, seen);
    int32_t chunk_longest;
    const int32_t before = max(longest, max_before(ends.longest, lane, &chunk_longest));
    const bool free = ends.own && ends.own == ends.longest && ends.own > before;
    outside |= __any_sync(kAll, free) != 0;
    const unsigned hits = __ballot_sync(kAll, ends.own != 0);
    if (hits) {
      const int low = __ffs(hits) - 1, high = kWarp - 1 - __clz(hits);
      const int32_t low_end = __shfl_sync(kAll, ends.own, low);
      if (first_begin < 0) first_begin = base + low, first_end = low_end;
      last_begin = base + high;
      last_end = __shfl_sync(kAll, ends.own, high);
    }
    longest = max(longest, chunk_longest);
  }
  if (lane != 0) return;
  int32_t* out = rows.out + static_cast<int64_t>(r) * kRowInts;
  out[0] = first_begin, out[1] = first_end, out[2] = last_begin, out[3] = last_end;
  out[4] = start, out[5] = first_begin >= 0 && !outside;
}

}  // namespace

#ifdef __CUDACC__
void label_match_cuda(const LabelTables& tables, const LabelRows& rows, uintptr_t stream) {
  if (rows.rows == 0) return;
  const int blocks = (rows.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  match_rows<<<blocks, kRowsPerBlock * kWarp, 0, reinterpret_cast<cudaStream_t>(stream)>>>(tables, rows);
  check_cuda(cudaGetLastError(), "label_match");
}
#endif

}  // namespace vstar
