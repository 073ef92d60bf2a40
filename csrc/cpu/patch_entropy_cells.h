// What patch_entropy and patch_entropy_from_pixels share: from a block of gray levels to entropies.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/patch_entropy_histogram.h"

namespace erase_kernels {

constexpr float kEntropyUnit = 0x1p-40f;  // table entries count units of 2^-40 nats

// Asks for memory that is read a little later: rows of a block are short and far apart, which the
// processor does not foresee by itself. Inlined by force, like its callers: GCC takes a function
// that only prefetches for one without effect and drops the call.
ERASE_KERNELS_INLINE void prefetch(const void* start, int64_t bytes) {
  constexpr int64_t kCacheLine = 64;
  const char* byte = static_cast<const char*>(start);
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) __builtin_prefetch(byte + offset);
}

// Rows between the one being read and the one being asked for.
constexpr int64_t kPrefetchRows = 2;

// How many cells and rows are turned to gray levels at a time.
struct BlockShape {
  int64_t cells;
  int64_t rows;
};

// A block is as wide as keeps the vector loop busy and no larger than the first-level cache.
inline BlockShape block_shape(int64_t rows, int64_t columns, int64_t adjacent_cells) {
  constexpr int64_t kWidth = 1024;         // pixels
  constexpr int64_t kBufferBytes = 32768;  // one byte per pixel
  const int64_t fitting = std::min(kWidth / columns, kBufferBytes / (rows * columns));
  const int64_t cells = std::clamp<int64_t>(fitting, 1, std::max<int64_t>(adjacent_cells, 1));
  return {cells, std::clamp<int64_t>(kBufferBytes / (cells * columns), 1, rows)};
}

inline float entropy_of_sum(int64_t sum, const int64_t* table, int64_t cell_pixels) {
  return static_cast<float>(table[cell_pixels] - sum) * kEntropyUnit;
}

// Entropies of `cells` cells side by side. fill(row, gray) writes one row of all of them.
template <typename Fill>
void block_entropies(const PatchEntropyKernels& kernels, const int64_t* table, int64_t cells,
                     int64_t rows, int64_t columns, int64_t block_rows,
                     std::vector<uint8_t>& buffer, float* entropy, const Fill& fill) {
  const int64_t width = cells * columns;
  const int64_t cell_pixels = rows * columns;
  buffer.resize(static_cast<size_t>(width * block_rows));
  uint8_t* gray = buffer.data();
  if (block_rows == rows && fits_one_pass(rows, columns)) {
    for (int64_t row = 0; row < rows; ++row) fill(row, gray + row * width);
    for (int64_t cell = 0; cell < cells; ++cell) {
      const int64_t sum = kernels.table_sum(gray + cell * columns, rows, columns, width, table);
      entropy[cell] = entropy_of_sum(sum, table, cell_pixels);
    }
    return;
  }
  std::vector<uint32_t> counts(static_cast<size_t>(cells * kGrayLevels), 0);
  for (int64_t start = 0; start < rows; start += block_rows) {
    const int64_t length = std::min(block_rows, rows - start);
    for (int64_t row = 0; row < length; ++row) fill(start + row, gray + row * width);
    for (int64_t cell = 0; cell < cells; ++cell) {
      kernels.count(gray + cell * columns, length, columns, width, &counts[cell * kGrayLevels]);
    }
  }
  for (int64_t cell = 0; cell < cells; ++cell) {
    int64_t sum = 0;
    for (int bin = 0; bin < kGrayLevels; ++bin) sum += table[counts[cell * kGrayLevels + bin]];
    entropy[cell] = entropy_of_sum(sum, table, cell_pixels);
  }
}

}  // namespace erase_kernels
