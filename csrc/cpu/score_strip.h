// One strip of text-to-vision scoring on the CPU: plain pointers, no torch.
//
// A strip is at most kStripRows query rows that share one key head (the query heads of a group
// times the text rows). It walks the keys in blocks, keeps a running maximum and sum per row
// (online softmax), keeps the unnormalised probabilities, and at the end adds the normalised ones
// to the column sums. Rows lie along the vector lanes, so keys are read where they are: no packing,
// no transposition, no repeated heads.
#pragma once

#include <cstdint>

namespace erase_kernels {

constexpr int64_t kStripRows =
    48;  // three AVX-512 vectors: 8 keys x 3 accumulators fill the register file
constexpr int64_t kRowAlign = 16;  // lanes of the widest vector; strips are padded to a multiple
constexpr int64_t kKeyBlock =
    64;  // keys whose scores (64 x 48 x 4 bytes) stay in the first-level cache
constexpr int32_t kNoKey = INT32_MAX;  // position of a padding key: beyond every row's limit

enum class KeyType : int32_t { kFloat, kHalf, kBFloat16 };

struct KeyView {
  const void* data;  // first element of this batch row and key head
  KeyType type;
  int64_t position_stride;  // elements
  int64_t depth_stride;     // elements
  const int32_t* list;      // key positions to read, in any order
  int64_t count;            // entries of list
};

struct Strip {
  const float* queries;  // [depth, rows], scaled, rows padded with zeros
  int64_t depth;
  int64_t rows;           // multiple of kRowAlign, at most kStripRows
  const int32_t* limits;  // [rows] last key position a row may see; -1 for padding rows
  KeyView keys;
  const int32_t* column_slots;  // [columns] index into keys.list, or -1
  int64_t columns;
};

struct StripScratch {
  float* probabilities;  // [blocks * kKeyBlock, rows]
  float* block_scales;   // [blocks, rows]
  float* key_rows;       // [kKeyBlock, depth]; used when keys need converting
};

// Rows first..last-1 of the strip belong to one output: sums[c] += sum over those rows of
// softmax[row, c].
struct StripOutput {
  int64_t first;
  int64_t last;
  float* sums;
};

constexpr int64_t score_blocks(int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock; }

using StripFunction = void (*)(const Strip&, const StripScratch&, const StripOutput*,
                               int64_t outputs);

// The variant for the instruction set of active_clone().
StripFunction strip_function();

}  // namespace erase_kernels
