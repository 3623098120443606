// label_match on the GPU: one warp owns one row; its lanes test 32 neighbouring start positions at a time.
//
//   row r   |b a c k f l i p   t h e n   a   k i c k|
//   lanes    0 1 2 3 ...                           31     then the next 32 bytes, until the row ends
//
// A lane whose byte starts a label walks the trie alone. What the row needs (first, last, whether a longer
// label covers it) is joined by ballots and one prefix maximum per 32 bytes, in the order of the CPU's loop,
// so that both give the same integers. Rows of ids are first spread into the warp's own scratch, 32 tokens at
// a time, by a prefix sum of their sizes.
#include "label_rows.h"
#include "negation.h"
#include "warp.cuh"

namespace vstar {
namespace {

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

// Characters before byte `stop`: bytes at which no other character is still going on.
__device__ int32_t characters_before(const uint8_t* text, int32_t stop, int32_t end, int lane) {
  int32_t count = 0;
  for (int32_t base = 0; base < stop; base += kWarp) {
    const int32_t p = base + lane;
    int32_t lead = p;
    if (p < stop)
      while (lead > 0 && p - lead < 3 && is_continuation(text[lead])) --lead;
    const bool inside = p < stop && lead < p && read_code_point(text, lead, end).next > p;
    count += __popc(__ballot_sync(kAll, p < stop && !inside));
  }
  return count;
}

__device__ void match_row(const LabelTables& t, const LabelOut& job, const RowText& row, int32_t r,
                          int lane) {
  const uint8_t* text = row.text;
  const int32_t end = row.end, own = job.own[r];
  uint32_t* which = job.which ? job.which + static_cast<int64_t>(r) * job.which_words : nullptr;
  const auto seen = [which](int32_t label) {
    if (which) atomicOr(which + (label >> 5), 1u << (label & 31));
  };
  int32_t spans[4] = {-1, -1, -1, -1}, chars[4] = {-1, -1, -1, -1}, longest = 0;
  bool outside = false, denied = false;
  const int32_t start = row.bad >= 0 ? -1 : search_start(t, text, end, lane);
  for (int32_t base = start; start >= 0 && base < end; base += kWarp) {
    const int32_t p = base + lane;
    Ends ends;
    if (p < end && !word_before(t, text, p))
      ends = match_from(t, text, read_char(t, text, p, end), end, own, seen);
    int32_t chunk_longest;
    const int32_t before = max(longest, max_before(ends.longest, lane, &chunk_longest));
    const bool free = ends.own && ends.own == ends.longest && ends.own > before;
    outside |= __any_sync(kAll, free) != 0;
    denied |= __any_sync(kAll, job.negation && ends.own && negated(t, text, start, p)) != 0;
    const unsigned hits = __ballot_sync(kAll, ends.own != 0);
    if (hits) {
      const int low = __ffs(hits) - 1, high = kWarp - 1 - __clz(hits);
      const int32_t low_end = __shfl_sync(kAll, ends.own, low);
      if (spans[0] < 0) spans[0] = base + low, spans[1] = low_end;
      spans[2] = base + high;
      spans[3] = __shfl_sync(kAll, ends.own, high);
    }
    longest = max(longest, chunk_longest);
  }
  const bool hit = spans[0] >= 0;
  for (int side = 0; side < 4 && hit; ++side) chars[side] = characters_before(text, spans[side], end, lane);
  if (lane != 0) return;
  int32_t* out = job.out + static_cast<int64_t>(r) * kRowInts;
  for (int side = 0; side < 4; ++side) {
    out[kFirst + side] = spans[side];
    out[kFirstToken + side] = -1;
    out[kFirstChar + side] = chars[side];
  }
  out[kSearchedFrom] = start;
  out[kFlags] = (hit && !outside ? kInsideLonger : 0) | (denied ? kNegated : 0);
  out[kBadToken] = row.bad;
  out[kLength] = end;
}

__global__ void match_rows(LabelTables t, TextRows texts, LabelOut job) {
  const int lane = threadIdx.x % kWarp;
  const int32_t r = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  if (r >= job.rows) return;
  const int64_t begin = texts.offsets[r];
  match_row(t, job, {texts.text + begin, static_cast<int32_t>(texts.offsets[r + 1] - begin), -1}, r, lane);
}

// The bytes of row r, in `scratch`.
__device__ RowText spell_row(const TokenTable& tokens, const IdRows& ids, int32_t r, uint8_t* scratch,
                             int lane) {
  const int32_t count = ids.length(r);
  const int64_t begin = ids.begin(r);
  int32_t used = 0;
  for (int32_t base = 0; base < count; base += kWarp) {
    const int32_t i = base + lane;
    const int64_t id = i < count ? ids.id(begin + i) : 0;
    const unsigned bad = __ballot_sync(kAll, id < 0 || id >= tokens.count);
    if (bad) return {nullptr, 0, base + __ffs(bad) - 1};
    const TokenPiece piece = token_piece(tokens, id);
    const int32_t size = i < count ? piece.size : 0;
    int32_t total;
    const int32_t at = used + sum_before(size, lane, &total);
    for (int32_t k = 0; k < size; ++k) scratch[at + k] = piece.bytes[k];
    used += total;
  }
  warp_meets();
  return {scratch, used, -1};
}

// Writes the tokens that hold the first and the last byte of a span of bytes as a span of tokens.
__device__ void token_span(const TokenTable& tokens, const IdRows& ids, int32_t r, const int32_t* bytes,
                           int32_t* out, int lane) {
  const int32_t count = ids.length(r), first = bytes[0], last = bytes[1] - 1;
  const int64_t begin = ids.begin(r);
  int32_t used = 0;
  for (int32_t base = 0; base < count && used <= last; base += kWarp) {
    const int32_t i = base + lane;
    const int32_t size = i < count ? token_piece(tokens, ids.id(begin + i)).size : 0;
    int32_t total;
    const int32_t at = used + sum_before(size, lane, &total);
    if (at <= first && first < at + size) out[0] = i;
    if (at <= last && last < at + size) out[1] = i + 1;
    used += total;
  }
}

__global__ void match_id_rows(LabelTables t, TokenTable tokens, IdRows ids, LabelOut job, uint8_t* scratch,
                              int64_t scratch_bytes, int32_t warps) {
  const int lane = threadIdx.x % kWarp;
  const int32_t warp = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp >= warps) return;
  for (int32_t r = warp; r < job.rows; r += warps) {
    match_row(t, job, spell_row(tokens, ids, r, scratch + warp * scratch_bytes, lane), r, lane);
    warp_meets();
    int32_t* out = job.out + static_cast<int64_t>(r) * kRowInts;
    if (out[kFirst] < 0) continue;
    token_span(tokens, ids, r, out + kFirst, out + kFirstToken, lane);
    token_span(tokens, ids, r, out + kLast, out + kLastToken, lane);
  }
}

}  // namespace

#ifdef __CUDACC__
void label_match_cuda(const LabelTables& tables, const TextRows& texts, const LabelOut& out,
                      uintptr_t stream) {
  if (out.rows == 0) return;
  const int blocks = (out.rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  match_rows<<<blocks, kWarpsPerBlock * kWarp, 0, reinterpret_cast<cudaStream_t>(stream)>>>(tables, texts,
                                                                                            out);
  check_cuda(cudaGetLastError(), "label_match");
}

void label_match_ids_cuda(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                          const LabelOut& out, uint8_t* scratch, int64_t scratch_bytes, int32_t warps,
                          uintptr_t stream) {
  if (out.rows == 0) return;
  const int blocks = (warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  match_id_rows<<<blocks, kWarpsPerBlock * kWarp, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      tables, tokens, ids, out, scratch, scratch_bytes, warps);
  check_cuda(cudaGetLastError(), "label_match on ids");
}
#endif

}  // namespace vstar
