// text_to_vision_scores: what all its kernels know, and which positions and keys there are.
#pragma once

#include "cuda/device.cuh"

namespace erase_kernels {

constexpr int32_t kNowhere = 0x7fffffff;  // position of a key that no row may see
constexpr float kNoLogit = -INFINITY;     // of a key that a row may not see

// [batch, heads, length, depth]; strides in elements.
struct ScoreOperand {
  const void* data;
  int64_t batch, head, row, depth;
};

struct ScoreProblem {
  ScoreOperand query, key;
  const int32_t* rows;            // [row_count]
  const int32_t* row_offsets;     // [batch + 1]
  const int32_t* columns;         // [column_count]
  const int32_t* column_offsets;  // [batch + 1]
  const uint8_t* mask;            // [batch, keys] or null
  int32_t* status;
  int32_t batch, queries, keys, row_count, column_count;
  int32_t key_heads, group, depth;  // group: query heads per key head
  int32_t passes;                   // pieces of the depth that go through shared memory
  int64_t query_offset;             // key position of query 0; `keys` where nothing is causal
  float scale;                      // |scale| log2(e), above 0
  int32_t negative;                 // the sign of the scale
  int32_t listed;                   // the softmax runs over the columns only
  int32_t wide;                     // 16-byte reads are legal
  uint32_t zero;                    // 0, which the compiler does not know
};

// A query row of one query head of a group, found once: (R, group) entries.
struct __align__(16) RowEntry {
  int64_t offset;  // from the group's first head, in elements; -1 if there is no such row
  int32_t limit;   // the last key position it may see; -1 if there is no such row
};

struct Segment {
  int32_t start, end;
};

// Inside [0, total] and in order, whatever the offsets hold.
__device__ __forceinline__ Segment segment_of(const int32_t* offsets, int32_t index,
                                              int32_t total) {
  const int32_t start = min(max(offsets[index], 0), total);
  return {start, min(max(offsets[index + 1], start), total)};
}

// The last key position that a row may see.
__device__ __forceinline__ int32_t limit_of(const ScoreProblem& p, int32_t position) {
  const int64_t limit = position + p.query_offset;
  return static_cast<int32_t>(min(max(limit, static_cast<int64_t>(-1)),  //
                                  static_cast<int64_t>(kNowhere - 1)));
}

// The position of a key that may be seen; kNowhere if it does not exist or the mask hides it.
__device__ __forceinline__ int32_t visible_position(const ScoreProblem& p, int32_t batch,
                                                    int32_t position) {
  if (position < 0 || position >= p.keys) return kNowhere;
  if (p.mask != nullptr && p.mask[static_cast<int64_t>(batch) * p.keys + position] == 0)
    return kNowhere;
  return position;
}

// Where a head starts, and where a position of it does: -1 if there is none.
__device__ __forceinline__ int64_t base_of(const ScoreOperand& x, int32_t batch, int32_t head) {
  return batch * x.batch + head * x.head;
}
__device__ __forceinline__ int64_t place_of(const ScoreOperand& x, int64_t base, int32_t position,
                                            int32_t length) {
  return position < 0 || position >= length ? -1 : base + position * x.row;
}

}  // namespace erase_kernels
