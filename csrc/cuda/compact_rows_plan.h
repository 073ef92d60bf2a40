// What one launch of compact_rows knows: a table that travels by value, and how the host fills it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/compact_units.h"

namespace erase_kernels {

constexpr int kRowsThreads = 128;
constexpr int kRowsUnits = 4;  // loads of a thread, all under way at once
constexpr int64_t kBlockUnits = kRowsThreads * kRowsUnits;
constexpr int kTableEntries = 32;  // the table stays below 4 KB

// Planes [planes, batch or 1, length, row] of one tensor, and where they go; strides in bytes.
struct RowsPlanes {
  const char* source;
  char* target;
  int64_t planes, length, row_bytes;
  int64_t plane_stride, batch_stride, row_stride;
  int64_t element_bytes, column_stride;  // from element to element
  bool plain;                            // elements of a row stand side by side
};

struct RowsEntry {
  const char* source;
  char* target;
  int64_t plane_stride, batch_stride, row_stride, column_stride;
  uint32_t first_block;
  int32_t length;
  uint32_t units, unit;    // of a row; bytes of one
  uint32_t piece, pieces;  // units of a row that one block copies, at least 1; pieces of a row
  uint32_t rows, strips;   // output rows of a block; blocks of a batch row's output
  uint32_t element_shift;  // 2^element_shift units are one element, all of a row where it is plain
  FastDivide by_piece;
};

struct CompactRowsTable {
  RowsEntry entries[kTableEntries];
  const int32_t* slots;   // [batch, width]
  const int32_t* counts;  // [batch]
  int32_t* status;
  int64_t batch, width;
  uint32_t entry_count;
};
static_assert(sizeof(CompactRowsTable) <= 4096, "no detour");

// Adds an entry; `blocks` of the launch grows; it may pass kMostBlocks, which the caller checks.
inline void add_planes(CompactRowsTable& table, int64_t& blocks, const RowsPlanes& planes) {
  constexpr uint32_t kPlainShift = 31;
  int64_t unit =
      unit_of(planes.row_bytes | planes.plane_stride | planes.batch_stride | planes.row_stride |
              static_cast<int64_t>(reinterpret_cast<uintptr_t>(planes.source)) |
              static_cast<int64_t>(reinterpret_cast<uintptr_t>(planes.target)));
  uint32_t shift = kPlainShift;
  if (!planes.plain) {
    unit = std::min<int64_t>(unit, unit_of(planes.element_bytes));
    for (shift = 0; unit << shift < planes.element_bytes;) ++shift;
  }
  const int64_t units = planes.row_bytes / unit, lanes = std::max<int64_t>(units, 1);
  const int64_t pieces = ceil_divide(lanes, kBlockUnits), piece = ceil_divide(lanes, pieces);
  const int64_t rows = kBlockUnits / piece;
  const int64_t strips = std::max<int64_t>(ceil_divide(table.width, rows), 1);
  RowsEntry& entry = table.entries[table.entry_count++];
  entry.source = planes.source;
  entry.target = planes.target;
  entry.plane_stride = planes.plane_stride;
  entry.batch_stride = planes.batch_stride;
  entry.row_stride = planes.row_stride;
  entry.column_stride = planes.plain ? 0 : planes.column_stride;
  entry.first_block = static_cast<uint32_t>(blocks);
  entry.length = static_cast<int32_t>(std::min(planes.length, kMostIndex));
  entry.units = static_cast<uint32_t>(units);
  entry.unit = static_cast<uint32_t>(unit);
  entry.piece = static_cast<uint32_t>(piece);
  entry.pieces = static_cast<uint32_t>(pieces);
  entry.rows = static_cast<uint32_t>(rows);
  entry.strips = static_cast<uint32_t>(strips);
  entry.element_shift = shift;
  entry.by_piece = FastDivide(piece);
  blocks += planes.planes * table.batch * strips * pieces;
}

}  // namespace erase_kernels
