// Kept slots of all layers' key/value caches move to the front, in place, in one launch.
// One block per (tensor, batch row, head, 128 bytes of the row): blocks never meet. It walks its
// kept slots upwards in chunks of 8 KB; three are on their way into shared memory while one is
// stored. Six blocks share a processor and hide each other's barriers. Considered: chunks in
// registers (the few scoreboards of a warp make the store of one chunk wait for the loads of the
// next), a warp per item without block barriers (too few bytes under way), 256-byte slices (too few
// blocks for 132 processors), 64-byte ones (half a line; every list is read twice as often).
#pragma once

#include "cuda/compact_kv_lists.cuh"

namespace erase_kernels {

constexpr int kMoveBlocks = 6;  // of a processor that has 228 KB of shared memory
using ChunkOffsets = int64_t[kMoveThreads];

// Bytes from a head's first slot to any slot of one batch row.
struct SlotPlaces {
  const int32_t* blocks;  // null: contiguous
  int64_t block_stride, slot_stride;
  FastDivide block_size;
  int32_t block_slots;

  __device__ __forceinline__ int64_t operator()(uint32_t slot) const {
    if (blocks == nullptr) return slot * slot_stride;
    const uint32_t j = block_size(slot);
    return __ldg(blocks + j) * block_stride + (slot - j * block_slots) * slot_stride;
  }
};

// One slice of one head; `base` and `row` are a thread's own.
struct Slice {
  char* base;               // this thread's unit in the head's first slot
  uint32_t row, step_rows;  // its row of the first step; rows of a step
  bool idle;                // this thread has no unit
  uint32_t chunk_rows;      // of as many steps as a thread loads units; no more than threads
  uint32_t first, count;    // kept slots that move
  const int32_t* slots;
  SlotPlaces places;
  ChunkOffsets *from, *to;  // two each

  // Rows of the chunk that starts at `start`.
  __device__ __forceinline__ uint32_t rows_from(uint32_t start) const {
    return start < count ? min(count - start, chunk_rows) : 0;
  }
  // This thread's entry of the list in that chunk.
  __device__ __forceinline__ uint32_t fetch(uint32_t start) const {
    return threadIdx.x < rows_from(start) ? __ldg(slots + start + threadIdx.x) : 0;
  }
  // Tells all threads, behind the next barrier, where the chunk's rows are; `slot` is this
  // thread's.
  __device__ __forceinline__ void publish(ChunkOffsets& offsets, uint32_t start,
                                          uint32_t slot) const {
    if (threadIdx.x < rows_from(start)) offsets[threadIdx.x] = places(slot);
  }
};

__device__ __forceinline__ void copy_unit(uint4* shared, const void* global) {
  cp_async16(shared, global);
}
__device__ __forceinline__ void copy_unit(uint32_t* shared, const void* global) {
  cp_async<4>(shared, global);
}

// Moves the slots of a slice; each turn starts to load one chunk and stores the one kStages - 1
// before it.
//
// Kept slots ascend strictly, so slots[j] >= j. A store to place i spoils a load of slots[j] only
// where slots[j] = i, hence j <= i: never a load of a later chunk, which may therefore be under way
// early, and in the chunk itself only before the barrier, at which the loads of all threads have
// arrived. Loads of earlier chunks lie before earlier barriers. The same barrier hands over
// offsets, and parts the stores that read a stage from the loads that fill it again; a unit of a
// stage belongs to one thread.
template <typename Unit>
__device__ __forceinline__ void move_slice(const Slice& slice) {
  Unit* const mine = dynamic_shared<Unit>() + threadIdx.x;
  const uint32_t rows = slice.chunk_rows, lag = (kStages - 1) * rows;
  uint32_t slot = slice.fetch(slice.first), parity = 0, stage = 0;
  for (uint32_t start = slice.first; start < slice.count + lag; start += rows) {
    const bool stores = start >= slice.first + lag;
    slice.publish(slice.from[parity], start, slot);
    if (stores) slice.publish(slice.to[parity], start - lag, start - lag + threadIdx.x);
    slot = slice.fetch(start + rows);
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const uint32_t loaded = slice.idle ? 0 : slice.rows_from(start);
    int64_t places[kChunkUnits];
#pragma unroll
    for (uint32_t k = 0; k < kChunkUnits; ++k)
      places[k] = slice.from[parity][slice.row + k * slice.step_rows];
#pragma unroll
    for (uint32_t k = 0; k < kChunkUnits; ++k)
      if (slice.row + k * slice.step_rows < loaded)
        copy_unit(mine + (stage * kChunkUnits + k) * kMoveThreads, slice.base + places[k]);
    cp_async_commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (stores) {
      const uint32_t stored = slice.idle ? 0 : slice.rows_from(start - lag);
      Unit units[kChunkUnits];
#pragma unroll
      for (uint32_t k = 0; k < kChunkUnits; ++k) {
        units[k] = mine[(stage * kChunkUnits + k) * kMoveThreads];
        places[k] = slice.to[parity][slice.row + k * slice.step_rows];
      }
#pragma unroll
      for (uint32_t k = 0; k < kChunkUnits; ++k)
        if (slice.row + k * slice.step_rows < stored)
          *reinterpret_cast<Unit*>(slice.base + places[k]) = units[k];
    }
    parity ^= 1;
  }
}

// The same for units that no asynchronous copy takes: one chunk behind the other, in registers.
template <typename Unit>
__device__ __forceinline__ void move_narrow_slice(const Slice& slice) {
  for (uint32_t start = slice.first; start < slice.count; start += slice.chunk_rows) {
    __syncthreads();  // the chunk before has read its offsets
    slice.publish(slice.from[0], start, slice.fetch(start));
    slice.publish(slice.to[0], start, start + threadIdx.x);
    __syncthreads();
    const uint32_t rows = slice.idle ? 0 : slice.rows_from(start);
    Unit units[kNarrowUnits];
#pragma unroll
    for (uint32_t k = 0; k < kNarrowUnits; ++k) {
      const uint32_t row = slice.row + k * slice.step_rows;
      if (row < rows) units[k] = *reinterpret_cast<const Unit*>(slice.base + slice.from[0][row]);
    }
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < kNarrowUnits; ++k) {
      const uint32_t row = slice.row + k * slice.step_rows;
      if (row < rows) *reinterpret_cast<Unit*>(slice.base + slice.to[0][row]) = units[k];
    }
  }
}

// Slots of one batch row that move, [first, count); sets status bits and moves none if they are
// bad. Frees blocks where `frees`.
__device__ __forceinline__ int2 moving_slots(const CompactKvTable& table, int64_t batch, bool frees,
                                             int* warp_least) {
  const KeepLists& lists = table.lists;
  const Paging& paging = table.paging;
  const int32_t* slots = lists.slots + batch * lists.width;
  int count = __ldg(lists.counts + batch);
  const uint32_t width = static_cast<uint32_t>(min(lists.width, kMostIndex));
  const bool counted = count >= 0 && count <= lists.width;
  int first = first_moved(slots, counted ? count : 0, width, lists.length, warp_least);
  int bits = !counted ? kStatusCounts : first < 0 ? kStatusKeep : 0;
  if (paging.used && bits == 0 && count > 0) {
    const uint32_t last = static_cast<uint32_t>(__ldg(slots + count - 1));
    const int32_t* blocks = paging.table + batch * paging.width;
    if (!good_blocks(paging, blocks, paging.block_size(last) + 1)) bits = kStatusBlockTable;
  }
  if (bits != 0) {
    if (threadIdx.x == 0) set_status(lists.status, bits);
    first = count = 0;
  }
  if (frees) {
    int64_t held = count > 0 ? paging.block_size(static_cast<uint32_t>(count) - 1) + int64_t{1} : 0;
    if (bits != 0) held = paging.width;
    write_freed(paging, batch, held);
  }
  return make_int2(first, count);
}

__global__ void __launch_bounds__(kMoveThreads, kMoveBlocks)
    compact_kv_kernel(const __grid_constant__ CompactKvTable table) {
  ERASE_SHARED(int64_t, from, [2][kMoveThreads]);
  ERASE_SHARED(int64_t, to, [2][kMoveThreads]);
  ERASE_SHARED(int, warp_least, [kMoveWarps]);
  uint32_t g = 0;
  while (g + 1 < table.group_count && blockIdx.x >= table.groups[g + 1].first_block) ++g;
  const CacheGroup& group = table.groups[g];
  uint32_t task = blockIdx.x - group.first_block;
  const uint32_t i_slice = task % group.slices;
  task /= group.slices;
  const uint32_t head = task % group.heads;
  task /= group.heads;
  const uint32_t tensor = task % group.tensors;
  const int64_t batch = task / group.tensors;

  const bool frees = table.frees && g + i_slice + head + tensor == 0;
  const int2 moving = moving_slots(table, batch, frees, warp_least);
  if (moving.x >= moving.y || group.units == 0) return;

  const uint32_t lane = threadIdx.x % group.lanes, row = threadIdx.x / group.lanes;
  const uint32_t steps = group.unit < 4 ? kNarrowUnits : kChunkUnits;
  const uint32_t step_rows = min(kMoveThreads / group.lanes, kMoveThreads / steps);
  const uint32_t column = i_slice * group.lanes + lane;
  const bool idle = row >= step_rows || column >= group.units;
  const bool paged = table.paging.used;
  Slice slice;
  slice.base = table.data[group.first_tensor + tensor] + head * group.head_stride +
               static_cast<int64_t>(column) * group.unit + (paged ? 0 : batch * group.outer_stride);
  slice.row = idle ? 0 : row;
  slice.idle = idle;
  slice.step_rows = step_rows;
  slice.chunk_rows = step_rows * steps;
  slice.first = static_cast<uint32_t>(moving.x);
  slice.count = static_cast<uint32_t>(moving.y);
  slice.slots = table.lists.slots + batch * table.lists.width;
  slice.places = {paged ? table.paging.table + batch * table.paging.width : nullptr,
                  group.outer_stride, group.slot_stride, table.paging.block_size,
                  table.paging.block_slots};
  slice.from = from;
  slice.to = to;
  if (group.unit == kWidestUnit) return move_slice<uint4>(slice);
  if (group.unit == 4) return move_slice<uint32_t>(slice);
  if (group.unit == 2) return move_narrow_slice<uint16_t>(slice);
  move_narrow_slice<uint8_t>(slice);
}

}  // namespace erase_kernels
