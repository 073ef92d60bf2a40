// Loops of patch_entropy and patch_entropy_from_pixels; no torch here.
//
// Both operators work on blocks: the gray levels of a few neighbouring cells are written to a small
// buffer that stays in the first-level cache, rows of the block one under the other, and each cell
// is then counted from there. Splitting the two keeps the first loop vectorised (the gray level)
// and the second free of floating point (the histogram).
#pragma once

#include <cstdint>

#include "cpu/clones.h"

namespace erase_kernels {

constexpr int kGrayLevels = 256;

// Recovery of a gray level from a normalised value, numerics as in PixelLayout.
struct PixelStatistics {
  float mean[3];
  float std[3];
  float scale;
  float tolerance;  // largest accepted distance from an integer, in gray levels
};

// One row of pixels: where its channels start (one or three), and the distance between its pixels.
template <typename T>
struct PixelRow {
  const T* channel[3];
  int channels;
  int64_t stride;  // in elements
};

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The same functions compiled for one instruction set.
struct PatchEntropyKernels {
  // Gray levels of `count` uint8 pixels.
  void (*gray)(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray);
  // Gray levels of `count` normalised pixels; false if one is no integer level.
  bool (*gray_f32)(const PixelRow<float>& row, const PixelStatistics& statistics, int64_t count,
                   uint8_t* gray);
  bool (*gray_f16)(const PixelRow<Half>& row, const PixelStatistics& statistics, int64_t count,
                   uint8_t* gray);
  bool (*gray_bf16)(const PixelRow<BFloat16>& row, const PixelStatistics& statistics, int64_t count,
                    uint8_t* gray);
  // Adds `rows` x `columns` gray levels, `stride` apart, to counts[256].
  void (*count)(const uint8_t* gray, int64_t rows, int64_t columns, int64_t stride,
                uint32_t* counts);
  // sum_b table[count_b] of a cell small enough for one pass (see fits_one_pass).
  int64_t (*table_sum)(const uint8_t* gray, int64_t rows, int64_t columns, int64_t stride,
                       const int64_t* table);
};

const PatchEntropyKernels& patch_entropy_kernels(Clone clone);

}  // namespace erase_kernels
