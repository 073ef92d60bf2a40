// Which of two block shapes the selection kernels take; the host knows the mean segment only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace erase_kernels {

// A block holds kThreads * kKeys keys in registers; longer segments are read again in every pass.
template <int kThreads_, int kKeys_, int kBlocks_>
struct SelectShape {
  static constexpr int kThreads = kThreads_;
  static constexpr int kKeys = kKeys_;  // of a thread, at most 32: a lane for each of a warp's rows
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBlocks = kBlocks_;  // of a multiprocessor, at least
  static constexpr int kTile = kThreads * kKeys;
};
using NarrowSelect = SelectShape<256, 8, 4>;  // many short segments share a multiprocessor
using WideSelect = SelectShape<512, 32, 1>;

struct SelectPlan {
  bool wide;
  int64_t blocks;  // one for each segment; also one if there are none: it checks the offsets
  int64_t mean;    // length of the segments if all are equally long
};

// Segments up to twice the mean are to fit; the length of a single one is known.
inline SelectPlan plan_select(int64_t elements, int64_t segments) {
  const int64_t some = std::max<int64_t>(segments, 1);
  const int64_t bound = std::min((2 * elements + some - 1) / some, elements);
  return {bound > NarrowSelect::kTile, some, elements / some};
}

}  // namespace erase_kernels
