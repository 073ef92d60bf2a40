// The layout that patch_entropy_from_pixels reads, as its kernel wants it. Host side, plain
// numbers.
#pragma once

#include "cuda/patch_entropy_plan.h"

namespace erase_kernels {

constexpr int kPixelChannels = 3;

// Cells are numbered row-major over three loops; a cell has `lines` lines of `columns` values.
struct PixelCells {
  const void* data;
  int64_t cell_strides[3];   // elements, outermost first
  int64_t pixel_strides[3];  // of segments, rows and columns; the largest first
  int64_t channel_stride;
  uint32_t cell_sizes[2];        // of the two inner cell loops
  uint32_t segment_rows, lines;  // rows of a segment, and of all segments
  uint32_t columns;
  uint32_t quads;  // of a line
  uint32_t channels;
  uint32_t cells, tile_cells;
  Spread spread;
  float mean[kPixelChannels], std[kPixelChannels];
  float scale, tolerance;
};

// Three loops over the same elements in as few and as long runs as there are: the order does not
// matter to a histogram. Longest stride first; loops that are not needed have one turn.
inline void join_loops(const int64_t* sizes, const int64_t* strides, int64_t* joined_sizes,
                       int64_t* joined_strides) {
  int order[3] = {0, 1, 2};
  std::sort(order, order + 3, [&](int a, int b) {
    return strides[a] != strides[b] ? strides[a] > strides[b] : sizes[a] > sizes[b];
  });
  int64_t found_sizes[3], found_strides[3];
  int count = 0;
  for (const int i : order) {
    if (sizes[i] == 1) continue;
    int64_t size = sizes[i];
    if (count > 0 && found_strides[count - 1] == size * strides[i]) size *= found_sizes[--count];
    found_sizes[count] = size;
    found_strides[count++] = strides[i];
  }
  for (int i = 0; i < 3; ++i) {
    const int from = i - (3 - count);
    joined_sizes[i] = from < 0 ? 1 : found_sizes[from];
    joined_strides[i] = from < 0 ? 0 : found_strides[from];
  }
}

// Whether every quad is four neighbours in memory, aligned to their size.
inline bool whole_quads(const PixelCells& cells, int64_t outer, int64_t element_bytes) {
  const int64_t place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(cells.data));
  if (cells.columns % kQuad != 0 || cells.pixel_strides[2] != 1) return false;
  int64_t misaligned = place % (kQuad * element_bytes);
  if (outer > 1) misaligned |= cells.cell_strides[0] % kQuad;
  for (int i = 0; i < 2; ++i) {
    if (cells.cell_sizes[i] > 1) misaligned |= cells.cell_strides[i + 1] % kQuad;
    misaligned |= cells.pixel_strides[i] % kQuad;
  }
  if (cells.channels > 1) misaligned |= cells.channel_stride % kQuad;
  return misaligned == 0;
}

// Chooses tiles and returns the block size.
inline uint32_t plan_pixels(PixelCells& cells) {
  constexpr uint32_t kPixelInstructions = 45;
  cells.tile_cells = tile_cells_of(cells.cells);
  const uint64_t lines = uint64_t{cells.tile_cells} * cells.lines;
  const uint32_t threads = best_threads([&](uint32_t count) {
    return tile_instructions(cells.quads, lines, kPixelInstructions * kQuad, count);
  });
  cells.spread = make_spread(cells.quads, threads);
  return threads;
}

}  // namespace erase_kernels
