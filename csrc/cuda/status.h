// Bits of the device's status word, as erase_kernels/_status.py lists them; a test compares both.
#pragma once

#include <cstdint>

namespace erase_kernels {

enum Status : int32_t {
  kStatusOffsets = 1,
  kStatusCounts = 2,
  kStatusCapacity = 4,
  kStatusThresholds = 8,
  kStatusPixels = 16,
  kStatusIndices = 32,
  kStatusScores = 64,
  kStatusKeep = 128,
  kStatusBlockTable = 256,
};

}  // namespace erase_kernels
