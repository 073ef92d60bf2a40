// Kept slots of every batch row: checks, and their cut into runs of neighbours that move together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "checks.h"

namespace erase_kernels {

struct KeepLists {
  const int32_t* slots;   // [batch, width], strictly ascending up to counts[b]
  const int32_t* counts;  // [batch]
  int64_t batch;
  int64_t width;

  const int32_t* row(int64_t b) const { return slots + b * width; }
};

inline KeepLists read_keep_lists(const Tensor& keep, const Tensor& counts) {
  return {read_ids(keep, "keep"), read_ids(counts, "counts"), keep.size(0), keep.size(1)};
}

// counts in [0, width]; slots in [0, length) and strictly ascending, so that no slot moves upwards.
inline void check_keep(const KeepLists& keep, int64_t length) {
  for (int64_t b = 0; b < keep.batch; ++b) {
    if (keep.counts[b] < 0 || keep.counts[b] > keep.width)
      refuse("counts", "expected between 0 and the width of keep ", keep.width, ", got ",
             keep.counts[b], " in batch row ", b);
    const int32_t* slots = keep.row(b);
    for (int64_t i = 0; i < keep.counts[b]; ++i) {
      if (slots[i] < 0 || slots[i] >= length)
        refuse("keep", "expected slots in [0, ", length, "), got ", slots[i], " in batch row ", b);
      if (i > 0 && slots[i] <= slots[i - 1])
        refuse("keep", "expected strictly ascending slots, got ", slots[i - 1], " before ",
               slots[i], " in batch row ", b);
    }
  }
}

// Tasks a thread takes at once: all of them where waking other threads costs more than it saves.
inline int64_t tasks_per_thread(int64_t tasks, int64_t bytes) {
  constexpr int64_t kSerialBytes = 1 << 20;  // copied in about 50 us; a wake-up takes 5 to 10
  return bytes < kSerialBytes ? std::max<int64_t>(tasks, 1) : 1;
}

struct Run {
  int32_t to;      // first destination slot
  int32_t from;    // first source slot
  int32_t length;  // slots
};

// Maximal runs of consecutive source slots. A leading run that is in place already is left out.
inline std::vector<Run> moving_runs(const int32_t* slots, int32_t count) {
  std::vector<Run> runs;
  for (int32_t i = 0; i < count;) {
    int32_t length = 1;
    while (i + length < count && slots[i + length] == slots[i] + length) ++length;
    if (slots[i] != i) runs.push_back({i, slots[i], length});
    i += length;
  }
  return runs;
}

}  // namespace erase_kernels
