// Kept rows of several tensors into new ones, zeros behind them: one launch for all of them.
// One block per 512 units of output rows: a piece of a long row, or several short rows. A unit is
// what a thread copies at once, 16 bytes where addresses allow; its four units are all under way
// before the first is stored. Blocks check the part of the list that they read, and its neighbour
// before: nobody reads the whole list, and no load waits for the count. Considered: 1024 units
// (fewer blocks, a longer tail), one launch per width (the positions would be a launch of their
// own).
#pragma once

#include "cuda/compact_rows_plan.h"
#include "cuda/device.cuh"
#include "cuda/status.h"

namespace erase_kernels {

// What one block copies.
struct RowsTask {
  const char* source;  // of the plane and batch row
  char* target;
  const int32_t* slots;  // of the batch row
  uint32_t count, width;
  uint32_t first_row, first_column;
};

// Bytes from a row's start to a unit of it; rows of unit stride are one element.
__device__ __forceinline__ int64_t column_offset(const RowsEntry& entry, uint32_t column) {
  const uint32_t element = column >> entry.element_shift;
  const uint32_t part = column - (element << entry.element_shift);
  return element * entry.column_stride + static_cast<int64_t>(part) * entry.unit;
}

template <typename Unit>
__device__ __forceinline__ void copy_rows(const RowsEntry& entry, const RowsTask& task,
                                          int32_t* status) {
  uint32_t row[kRowsUnits], column[kRowsUnits];
  int slot[kRowsUnits], before[kRowsUnits];
#pragma unroll
  for (uint32_t k = 0; k < kRowsUnits; ++k) {
    const uint32_t place = threadIdx.x + k * kRowsThreads;
    const uint32_t inside = entry.by_piece(place);
    column[k] = task.first_column + place - inside * entry.piece;
    row[k] = inside < entry.rows ? task.first_row + inside : task.width;
    slot[k] = row[k] < task.width ? task.slots[row[k]] : 0;
    before[k] = row[k] < task.width && row[k] > 0 ? task.slots[row[k] - 1] : -1;
  }
  // Loads of the list, then loads of rows, then stores, each kind without a branch: else the
  // compiler puts each load before its use, and they wait for each other. Barriers keep it from
  // that, and so do plain loads, which may not pass a store.
  __syncwarp();
  const Unit* from[kRowsUnits];
  bool taken[kRowsUnits], bad = false;
#pragma unroll
  for (uint32_t k = 0; k < kRowsUnits; ++k) {
    const bool good = (slot[k] > before[k]) & (slot[k] < entry.length) & (slot[k] >= 0);
    const bool kept = row[k] < task.count;
    bad |= kept & !good & (column[k] == 0);
    taken[k] = kept & good & (column[k] < entry.units);
    from[k] = reinterpret_cast<const Unit*>(task.source + slot[k] * entry.row_stride +
                                            column_offset(entry, column[k]));
  }
  Unit units[kRowsUnits];
#pragma unroll
  for (uint32_t k = 0; k < kRowsUnits; ++k) {
    units[k] = Unit{};
    if (taken[k]) units[k] = *from[k];
  }
  __syncwarp();
#pragma unroll
  for (uint32_t k = 0; k < kRowsUnits; ++k) {
    const int64_t place = static_cast<int64_t>(row[k]) * entry.units + column[k];
    if ((row[k] < task.width) & (column[k] < entry.units))
      reinterpret_cast<Unit*>(task.target)[place] = units[k];
  }
  if (bad) set_status(status, kStatusKeep);
}

__global__ void __launch_bounds__(kRowsThreads)
    compact_rows_kernel(const __grid_constant__ CompactRowsTable table) {
  uint32_t e = 0;
  while (e + 1 < table.entry_count && blockIdx.x >= table.entries[e + 1].first_block) ++e;
  const RowsEntry& entry = table.entries[e];
  uint32_t local = blockIdx.x - entry.first_block;
  const uint32_t i_piece = local % entry.pieces;
  local /= entry.pieces;
  const uint32_t strip = local % entry.strips;
  local /= entry.strips;
  const uint32_t batches = static_cast<uint32_t>(table.batch);
  const int64_t batch = local % batches, plane = local / batches;

  const int count = __ldg(table.counts + batch);
  const bool counted = count >= 0 && count <= table.width;
  if (!counted && threadIdx.x == 0) set_status(table.status, kStatusCounts);
  RowsTask task;
  task.source = entry.source + plane * entry.plane_stride + batch * entry.batch_stride;
  task.target = entry.target + (plane * table.batch + batch) * table.width *
                                   static_cast<int64_t>(entry.units) * entry.unit;
  task.slots = table.slots + batch * table.width;
  task.count = counted ? static_cast<uint32_t>(count) : 0;
  task.width = static_cast<uint32_t>(table.width);
  task.first_row = strip * entry.rows;
  task.first_column = i_piece * entry.piece;
  if (entry.unit == kWidestUnit) return copy_rows<uint4>(entry, task, table.status);
  if (entry.unit == 4) return copy_rows<uint32_t>(entry, task, table.status);
  if (entry.unit == 2) return copy_rows<uint16_t>(entry, task, table.status);
  copy_rows<uint8_t>(entry, task, table.status);
}

}  // namespace erase_kernels
