// Histogram of a cell, and the table sum over it.
//
// Eight sub-histograms, one per pixel position modulo eight: neighbouring pixels are often equal,
// and eight increments of one counter in a row would each wait for the store before. They hold
// bytes, so all eight take 2 KB and are added up sixteen or more bins at a time.
#pragma once

#include <cstring>

#include "cpu/patch_entropy_gray.h"

namespace erase_kernels {

constexpr int kLanes = 8;
constexpr int kMaxByte = 255;

// A pass may put at most this many pixels into a row segment, and kMaxByte increments into a lane.
constexpr int64_t kMaxSegment = kLanes * kMaxByte;

// Most increments one lane gets from a row of `columns` pixels.
ERASE_KERNELS_INLINE int64_t lane_increments(int64_t columns) {
  return (columns + kLanes - 1) / kLanes;
}

ERASE_KERNELS_INLINE void count_row(const uint8_t* gray, int64_t columns,
                                    uint8_t (&lanes)[kLanes][kGrayLevels]) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) ++lanes[lane][gray[i + lane]];
  }
  for (int lane = 0; i < columns; ++i, ++lane) ++lanes[lane][gray[i]];
}

template <typename Count>
ERASE_KERNELS_INLINE void add_lanes(const uint8_t (&lanes)[kLanes][kGrayLevels],
                                    Count* __restrict__ counts) {
  for (int bin = 0; bin < kGrayLevels; ++bin) {
    uint16_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane][bin];
    counts[bin] += sum;
  }
}

ERASE_KERNELS_INLINE void count_cell(const uint8_t* gray, int64_t rows, int64_t columns,
                                     int64_t stride, uint32_t* counts) {
  alignas(64) uint8_t lanes[kLanes][kGrayLevels] = {};
  int64_t increments = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t start = 0; start < columns; start += kMaxSegment) {
      const int64_t length = columns - start < kMaxSegment ? columns - start : kMaxSegment;
      if (increments + lane_increments(length) > kMaxByte) {
        add_lanes(lanes, counts);
        std::memset(lanes, 0, sizeof lanes);
        increments = 0;
      }
      count_row(gray + row * stride + start, length, lanes);
      increments += lane_increments(length);
    }
  }
  add_lanes(lanes, counts);
}

// Whether no lane of a cell can overflow a byte.
inline bool fits_one_pass(int64_t rows, int64_t columns) {
  return rows * lane_increments(columns) <= kMaxByte;
}

// table[0] is 0, and most pictures leave most bins of a cell empty: groups of empty bins are
// passed.
ERASE_KERNELS_INLINE int64_t sum_table(const uint16_t* counts, const int64_t* table) {
  constexpr int kGroup = 16;
  constexpr int kChains = 4;  // independent sums, so that additions need not wait for each other
  int64_t sums[kChains] = {};
  for (int bin = 0; bin < kGrayLevels; bin += kGroup) {
    uint64_t words[kGroup * sizeof(uint16_t) / sizeof(uint64_t)];
    std::memcpy(words, counts + bin, sizeof words);
    if ((words[0] | words[1] | words[2] | words[3]) == 0) continue;
    for (int i = 0; i < kGroup; ++i) sums[i % kChains] += table[counts[bin + i]];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

ERASE_KERNELS_INLINE int64_t table_sum_of_cell(const uint8_t* gray, int64_t rows, int64_t columns,
                                               int64_t stride, const int64_t* table) {
  alignas(64) uint8_t lanes[kLanes][kGrayLevels] = {};
  for (int64_t row = 0; row < rows; ++row) count_row(gray + row * stride, columns, lanes);
  alignas(64) uint16_t counts[kGrayLevels] = {};
  add_lanes(lanes, counts);
  return sum_table(counts, table);
}

}  // namespace erase_kernels
