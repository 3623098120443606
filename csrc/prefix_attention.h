// prefix_attention on the CPU in fp32: many query tokens over keys and values that groups of them share.
#pragma once

#include <cstdint>

namespace vstar {

// Rows are query tokens of all answers, packed. Strides count floats. `out` [tokens, heads, value_width],
// `top` and `sum` [tokens, heads]: largest score so far, and the weights' sum relative to it.
struct AttentionRows {
  const float* query;
  int64_t token_stride, head_stride;
  float *out, *top, *sum;
  int32_t tokens, heads, key_heads, width, value_width;
  float scale;
};

// Keys and values [slot, key head, position, width] of one segment and who sees them (see segment.py).
struct AttentionSegment {
  const float *keys, *values;
  int64_t key_slot, key_head, key_position, value_slot, value_head, value_position;
  const int64_t* tokens;   // [groups, members], -1 is nobody
  const int64_t* slots;    // [groups], or null: group g reads slot g
  const int64_t* visible;  // [groups, visible_members], or null: all positions
  const uint8_t* mask;     // [groups, mask_members, positions], or null
  int32_t groups, members, positions, visible_members, mask_members;
  bool causal;
};

constexpr int32_t kAttentionRows = 48;   // query rows of one unit
constexpr int32_t kAttentionTile = 128;  // positions whose scores are held at once
constexpr int32_t kAttentionLanes = 16;  // floats of a vector

// Whether this processor has the vectors that the code below is built for.
bool attention_simd();

// One unit: rows `first` to first + 48 of a group's [members x heads / key_heads] rows, over all positions.
// `scratch` holds attention_scratch(rows) floats, aligned to 64 bytes.
void attention_unit(const AttentionRows& rows, const AttentionSegment& segment, int32_t group,
                    int32_t key_head, int32_t first, float* scratch);
int64_t attention_scratch(const AttentionRows& rows);

// All segments; `level_ends[i]` is the number of segments up to the end of level i. Throws
// std::invalid_argument for a token that a level names twice. On return `out` is normalised and `top` holds
// the log-sum-exp; -inf and zeros where a token sees nothing.
void prefix_attention_cpu(const AttentionRows& rows, const AttentionSegment* segments,
                          const int32_t* level_ends, int32_t levels, int threads);

}  // namespace vstar
