// label_match on the GPU: one warp owns one row; its lanes test 32 neighbouring places at a time.
//
//   text     |b a c k f l i p   t h e n   a   k i c k|     a place is a byte
//   lanes     0 1 2 3 ...                           31
//   ids      |And| then| back|flip|,| a| spin| kick|.|     a place is a token; its hint says if it can matter
//   lanes     0   1     2     3    4 5  6     7     8
//
// A lane whose place may begin a label walks the trie alone. What the row needs (first, last, whether a
// longer label covers it) is joined by ballots and one prefix maximum per 32 places, in the order of the
// CPU's loop, so that both give the same integers. The bytes of ids are read where they lie in the token
// table.
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

// Whether no other character is still going on at byte p.
template <class Text>
__device__ bool begins_character(const Text& text, int32_t p, int32_t end) {
  int32_t lead = p;
  while (lead > 0 && p - lead < 3 && is_continuation(text[lead])) --lead;
  return lead == p || read_code_point(text, lead, end).next <= p;
}

// Characters before byte `stop`.
__device__ int32_t characters_before(const uint8_t* text, int32_t stop, int32_t end, int lane) {
  int32_t count = 0;
  for (int32_t base = 0; base < stop; base += kWarp) {
    const int32_t p = base + lane;
    count += __popc(__ballot_sync(kAll, p < stop && begins_character(text, p, end)));
  }
  return count;
}

// What the lanes found at 32 places, and up to them in the row; the same in every lane.
struct RowFound {
  int32_t spans[4] = {-1, -1, -1, -1}, longest = 0;
  bool outside = false, denied = false;

  // Each lane's own labels in its place: first and last, where the longest match of any label ends, the end
  // of an own one that no earlier match of this place covers (0 for none), and whether one is denied.
  struct Place {
    int32_t spans[4] = {-1, -1, -1, -1}, longest = 0, free = 0;
    bool denied = false;

    __device__ void add(int32_t begin, const Ends& ends, bool negative) {
      if (ends.own) {
        if (spans[0] < 0) spans[0] = begin, spans[1] = ends.own;
        spans[2] = begin, spans[3] = ends.own;
        if (ends.own == ends.longest && ends.own > longest) free = ends.own;
        denied |= negative;
      }
      longest = max(longest, ends.longest);
    }
  };

  __device__ void join(const Place& place, int lane) {
    int32_t joined_longest;
    const int32_t before = max(longest, max_before(place.longest, lane, &joined_longest));
    outside |= __any_sync(kAll, place.free > before) != 0;
    denied |= __any_sync(kAll, place.denied) != 0;
    longest = max(longest, joined_longest);
    const unsigned hits = __ballot_sync(kAll, place.spans[0] >= 0);
    if (!hits) return;
    const int low = __ffs(hits) - 1, high = kWarp - 1 - __clz(hits);
    for (int side = 0; side < 4; ++side) {
      const int32_t value = __shfl_sync(kAll, place.spans[side], side < 2 ? low : high);
      if (side >= 2 || spans[side] < 0) spans[side] = value;
    }
  }
};

// Writes a row's columns but those of tokens; by one lane.
__device__ void write_row(int32_t* out, const RowFound& found, const int32_t* chars, int32_t start,
                          int32_t bad, int32_t length) {
  for (int side = 0; side < 4; ++side) {
    out[kFirst + side] = found.spans[side];
    out[kFirstToken + side] = -1;
    out[kFirstChar + side] = chars[side];
  }
  out[kSearchedFrom] = start;
  out[kFlags] = (found.spans[0] >= 0 && !found.outside ? kInsideLonger : 0) | (found.denied ? kNegated : 0);
  out[kBadToken] = bad;
  out[kLength] = length;
}

__device__ uint32_t* which_of(const LabelOut& job, int32_t r) {
  return job.which ? job.which + static_cast<int64_t>(r) * job.which_words : nullptr;
}

__device__ void see(uint32_t* which, int32_t label) {
  if (which) atomicOr(which + (label >> 5), 1u << (label & 31));
}

__device__ void match_row(const LabelTables& t, const LabelOut& job, const uint8_t* text, int32_t end,
                          int32_t r, int lane) {
  const int32_t own = job.own[r], start = search_start(t, text, end, lane);
  uint32_t* which = which_of(job, r);
  RowFound found;
  for (int32_t base = start; start >= 0 && base < end; base += kWarp) {
    const int32_t p = base + lane;
    RowFound::Place place;
    if (p < end && !word_before(t, text, p)) {
      const auto seen = [which](int32_t label) { see(which, label); };
      const Ends ends = match_from(t, text, read_char(t, text, p, end), end, own, seen);
      place.add(p, ends, job.negation && ends.own && negated(t, text, start, p));
    }
    found.join(place, lane);
  }
  int32_t chars[4] = {-1, -1, -1, -1};
  for (int side = 0; side < 4 && found.spans[0] >= 0; ++side)
    chars[side] = characters_before(text, found.spans[side], end, lane);
  if (lane == 0) write_row(job.out + static_cast<int64_t>(r) * kRowInts, found, chars, start, -1, end);
}

__global__ void match_rows(LabelTables t, TextRows texts, LabelOut job) {
  const int lane = threadIdx.x % kWarp;
  const int32_t r = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  if (r >= job.rows) return;
  const int64_t begin = texts.offsets[r];
  match_row(t, job, texts.text + begin, static_cast<int32_t>(texts.offsets[r + 1] - begin), r, lane);
}

// What a row of ids is before its labels are looked for; the same in every lane.
struct RowShape {
  int32_t bytes = 0, bad = -1, start = 0;
  bool ascii = true;
};

// The hint of a lane's token, 0 behind the row's end.
__device__ uint32_t hint_of(const TokenHints& hints, const TokenText& text, int32_t i) {
  return i < text.count() ? hints.hint[text.id(i)] : 0;
}

// Looks at every token once: bytes of the row, ids outside the vocabulary, where the search begins.
__device__ RowShape shape_of(const LabelTables& t, const TokenTable& tokens, const TokenHints& hints,
                             const TokenText& text, int lane) {
  RowShape row;
  uint32_t every = 0;
  for (int32_t base = 0; base < text.count(); base += kWarp) {
    const int32_t i = base + lane;
    const int64_t id = i < text.count() ? text.id(i) : 0;
    const unsigned bad = __ballot_sync(kAll, id < 0 || id >= tokens.count);
    if (bad) return {0, base + __ffs(bad) - 1, -1, true};
    const uint32_t hint = hint_of(hints, text, i);
    int32_t total;
    sum_before(static_cast<int32_t>(hint & kHintBytes), lane, &total);
    row.bytes += total;
    every |= hint;
  }
  row.ascii = !__any_sync(kAll, (every & kHintHigh) != 0);
  if (t.after_length == 0) return row;
  row.start = -1;
  int32_t used = row.bytes;
  for (int32_t base = (text.count() - 1) / kWarp * kWarp; base >= 0 && row.start < 0; base -= kWarp) {
    const uint32_t hint = hint_of(hints, text, base + lane);
    const auto size = static_cast<int32_t>(hint & kHintBytes);
    int32_t total, stop = -1;
    const int32_t begin = used + sum_before(size, lane, &total);
    used -= total;
    if (hint & kHintLiteral) {
      text.load(base + lane, begin - total);
      stop = literal_in_token(t, text, begin - total, size, row.bytes);
    }
    const unsigned found = __ballot_sync(kAll, stop >= 0);
    if (found) row.start = __shfl_sync(kAll, stop, kWarp - 1 - __clz(found));
  }
  return row;
}

// Characters before byte `stop` in a row of ids; each lane counts in its own tokens.
__device__ int32_t characters_before(const TokenText& text, const TokenHints& hints, int32_t stop,
                                     int32_t end, int lane) {
  int32_t used = 0, count = 0;
  for (int32_t base = 0; base < text.count() && used < stop; base += kWarp) {
    const auto size = static_cast<int32_t>(hint_of(hints, text, base + lane) & kHintBytes);
    int32_t total;
    const int32_t begin = used + sum_before(size, lane, &total);
    if (size > 0) text.load(base + lane, begin);
    for (int32_t p = begin; p < min(begin + size, stop); ++p) count += begins_character(text, p, end);
    used += total;
  }
  int32_t all;
  sum_before(count, lane, &all);
  return all;
}

__device__ void match_id_row(const LabelTables& t, const TokenTable& tokens, const TokenHints& hints,
                             const IdRows& ids, const LabelOut& job, int32_t r, int lane) {
  const TokenText text(tokens, ids, r);
  const RowShape row = shape_of(t, tokens, hints, text, lane);
  uint32_t* which = which_of(job, r);
  RowFound found;
  int32_t used = 0;
  bool word = false;  // the token before these 32 ends a word
  for (int32_t base = 0; row.start >= 0 && base < text.count(); base += kWarp) {
    const uint32_t hint = hint_of(hints, text, base + lane);
    const unsigned words = __ballot_sync(kAll, (hint & kHintWord) != 0);
    const bool behind_word = lane ? words >> (lane - 1) & 1 : word;
    word = words >> (kWarp - 1) & 1;
    int32_t total;
    const int32_t begin = used + sum_before(static_cast<int32_t>(hint & kHintBytes), lane, &total);
    used += total;
    const bool may = (hint & kHintInner) != 0 || ((hint & kHintFirst) != 0 && !behind_word);
    if (used <= row.start || !__any_sync(kAll, may)) continue;
    RowFound::Place place;
    if (may)
      match_token(
          t, hints, text, base + lane, begin, row.start, row.bytes, job.own[r],
          [which](int32_t label) { see(which, label); },
          [&](int32_t at, const Ends& ends) {
            place.add(at, ends, job.negation && ends.own && negated(t, text, row.start, at));
          });
    found.join(place, lane);
  }
  int32_t chars[4] = {found.spans[0], found.spans[1], found.spans[2], found.spans[3]};
  for (int side = 0; side < 4 && found.spans[0] >= 0 && !row.ascii; ++side)
    chars[side] = characters_before(text, hints, found.spans[side], row.bytes, lane);
  if (lane != 0) return;
  int32_t* out = job.out + static_cast<int64_t>(r) * kRowInts;
  write_row(out, found, chars, row.start, row.bad, row.bytes);
  for (int side = 0; side < 4 && found.spans[0] >= 0; ++side)
    out[kFirstToken + side] = text.token_at(found.spans[side] - side % 2) + side % 2;
}

__global__ void match_id_rows(LabelTables t, TokenTable tokens, TokenHints hints, IdRows ids, LabelOut job) {
  const int32_t r = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  if (r < job.rows) match_id_row(t, tokens, hints, ids, job, r, threadIdx.x % kWarp);
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

void label_match_ids_cuda(const LabelTables& tables, const TokenTable& tokens, const TokenHints& hints,
                          const IdRows& ids, const LabelOut& out, uintptr_t stream) {
  if (out.rows == 0) return;
  const int blocks = (out.rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  match_id_rows<<<blocks, kWarpsPerBlock * kWarp, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      tables, tokens, hints, ids, out);
  check_cuda(cudaGetLastError(), "label_match on ids");
}
#endif

}  // namespace vstar
