// Checks of the offset lists that cut a flat tensor into segments.
#pragma once

#include <algorithm>
#include <cstdint>

#include "checks.h"

namespace erase_kernels {

// offsets[0] = 0, never falling, offsets[segments] = total.
inline void check_offsets(const char* name, const int32_t* offsets, int64_t segments,
                          int64_t total) {
  if (offsets[0] != 0) refuse(name, "expected a first entry of 0, got ", offsets[0]);
  for (int64_t i = 0; i < segments; ++i)
    if (offsets[i + 1] < offsets[i])
      refuse(name, "expected entries that never fall, got ", offsets[i], " before ",
             offsets[i + 1]);
  if (offsets[segments] != total)
    refuse(name, "expected a last entry of ", total, ", got ", offsets[segments]);
}

// Segments per task: all of them where waking other threads costs more than they save.
inline int64_t segments_per_task(int64_t segments, int64_t total) {
  constexpr int64_t kSerialElements = 1 << 16;  // about 60 us of selection; a wake-up takes 5 to 10
  return total < kSerialElements ? std::max<int64_t>(segments, 1) : 1;
}

// Every entry lies in [0, limit).
inline void check_indices(const char* name, const int32_t* indices, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i)
    if (indices[i] < 0 || indices[i] >= limit)
      refuse(name, "expected indices in [0, ", limit, "), got ", indices[i], " at place ", i);
}

}  // namespace erase_kernels
