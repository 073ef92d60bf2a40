// What one launch of compact_kv_ knows: tables that travel by value, and how the host fills them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/compact_units.h"

namespace erase_kernels {

constexpr int kMoveThreads = 128;  // of a block: small ones, so that several share a processor
constexpr int kChunkUnits = 4;     // loads of a thread in one chunk
constexpr int kNarrowUnits = 8;    // the same where units have less than 4 bytes
constexpr int kStages = 4;         // chunks under way or being stored
constexpr int kMoveSharedBytes = kStages * kChunkUnits * kMoveThreads * kWidestUnit;
constexpr int64_t kSliceBytes = 128;  // of a row that a block moves: one line of the cache

constexpr int kTableTensors = 256;  // with 16 layouts the table stays below 4 KB, the parameters
constexpr int kTableLayouts = 16;   // that every driver takes without a detour

// What tensors may have in common; strides in bytes. Contiguous: outer = batch row; paged: block.
struct CacheLayout {
  int64_t row_bytes, heads, outer_stride, head_stride, slot_stride, unit;

  bool operator==(const CacheLayout& other) const {
    return row_bytes == other.row_bytes && heads == other.heads &&
           outer_stride == other.outer_stride && head_stride == other.head_stride &&
           slot_stride == other.slot_stride && unit == other.unit;
  }
};

// Tensors of one layout in a launch.
struct CacheGroup {
  int64_t outer_stride, head_stride, slot_stride;
  uint32_t first_block, first_tensor, tensors, heads;
  uint32_t units, slices, lanes;  // of a row; slices of a row; units of a slice
  uint32_t unit;                  // bytes
};

struct KeepLists {
  const int32_t* slots;   // [batch, width]
  const int32_t* counts;  // [batch]
  int32_t* status;
  int64_t batch, width;
  int32_t length;  // of the shortest tensor
};

struct Paging {
  const int32_t* table;  // [batch, width]
  int32_t* users;        // [blocks], how often each block holds slots
  int32_t* freed;        // [batch, width]
  int64_t width, blocks;
  FastDivide block_size;
  int32_t block_slots;
  bool used;
};

struct CompactKvTable {
  char* data[kTableTensors];  // those of one group stand together
  CacheGroup groups[kTableLayouts];
  KeepLists lists;
  Paging paging;
  uint32_t group_count, tensor_count;
  bool frees;  // this launch lists the freed blocks
};
static_assert(sizeof(CompactKvTable) <= 4096, "no detour");

// Puts tensors of one layout into the table, as many as it has room for, and returns how many.
// `blocks` of the launch grows; it may pass kMostBlocks, which the caller checks.
inline size_t add_tensors(CompactKvTable& table, int64_t& blocks, const CacheLayout& layout,
                          char* const* data, size_t count) {
  if (table.group_count == kTableLayouts || table.tensor_count == kTableTensors) return 0;
  count = std::min<size_t>(count, kTableTensors - table.tensor_count);
  const int64_t units = layout.row_bytes / layout.unit;
  const int64_t slices = std::max<int64_t>(ceil_divide(layout.row_bytes, kSliceBytes), 1);
  CacheGroup& group = table.groups[table.group_count++];
  group = {layout.outer_stride,
           layout.head_stride,
           layout.slot_stride,
           static_cast<uint32_t>(blocks),
           table.tensor_count,
           static_cast<uint32_t>(count),
           static_cast<uint32_t>(layout.heads),
           static_cast<uint32_t>(units),
           static_cast<uint32_t>(slices),
           static_cast<uint32_t>(std::max<int64_t>(ceil_divide(units, slices), 1)),
           static_cast<uint32_t>(layout.unit)};
  std::copy_n(data, count, table.data + table.tensor_count);
  table.tensor_count += static_cast<uint32_t>(count);
  blocks += table.lists.batch * static_cast<int64_t>(count) * layout.heads * slices;
  return count;
}

// Tensors by layout.
struct LayoutMembers {
  CacheLayout layout;
  std::vector<char*> data;
};

inline void add_member(std::vector<LayoutMembers>& members, const CacheLayout& layout, char* data) {
  for (LayoutMembers& known : members)
    if (known.layout == layout) {
      known.data.push_back(data);
      return;
    }
  members.push_back({layout, {data}});
}

}  // namespace erase_kernels
