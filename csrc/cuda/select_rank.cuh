// The key at a given place of a segment's order, by one block: digits of 11, 11 and 10 bits from
// the top, each counted over the keys that share those found so far, in a histogram in shared
// memory; then all threads scan its bins, and the one whose bins hold the place says so.
// Three barriers and five shuffles to a digit, about 450 clocks; the first pass over 16 384 keys is
// bound by its 512 shared additions of a warp, of which the loads hide a part. Considered: 8-bit
// digits (four passes, and floats share their top bits), a pivot from a sample (its scan costs what
// it saves), counting against two pivots (7 to 9 passes, as in Triton), aggregating equal digits by
// match or vote (the addition of a constant is one instruction that merges equal addresses).
#pragma once

#include "cuda/select_keys.cuh"
#include "cuda/select_plan.h"

namespace erase_kernels {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// Keys from `low` on that share its digits: `below` are smaller, `count` are these. Padding counts.
struct Bracket {
  uint32_t low;
  uint32_t below;
  uint32_t count;
};

struct SelectShared {
  uint4 digits[(kDigits + kWarpThreads) / 4];  // and a place per lane for keys not to count
  uint32_t warp_sums[32];
  Bracket found;

  __device__ __forceinline__ uint32_t* counts() { return reinterpret_cast<uint32_t*>(digits); }
};

// For a barrier before the first count.
template <typename Shape>
__device__ __forceinline__ void clear_digits(SelectShared& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kDigits / 4; i += Shape::kThreads)
    shared.digits[i] = make_uint4(0, 0, 0, 0);
}

// Makes keys of the bits that were loaded and counts their first digits, each as it arrives.
template <typename Shape>
__device__ __forceinline__ void count_first_digits(uint32_t (&keys)[Shape::kKeys],
                                                   const TileRows& rows, uint32_t* counts) {
#pragma unroll
  for (int row = 0; row < Shape::kKeys; ++row) {
    if (row % kRowGroup == 0 && row >= rows.count) break;
    keys[row] = order_key(keys[row]);
    atomicAdd(&counts[keys[row] >> (32 - kDigitBits)], 1u);
  }
}

// Counts the digits at `shift` of the keys in a bracket of `most` digits. Others are counted past
// them, for a branch around an addition costs more; groups of rows without any are passed over.
template <typename Shape>
__device__ __forceinline__ void count_digits(const uint32_t (&keys)[Shape::kKeys],
                                             const TileRows& rows, uint32_t low, int shift,
                                             uint32_t most, uint32_t* counts) {
  const uint32_t past = most + threadIdx.x % kWarpThreads;
#pragma unroll
  for (int row = 0; row < Shape::kKeys; row += kRowGroup) {
    if (row >= rows.count) break;
    uint32_t digits[kRowGroup];
    bool some = false;
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      digits[i] = (keys[row + i] - low) >> shift;
      some = some || digits[i] < most;
    }
    if (!__any_sync(kAllLanes, some)) continue;
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) atomicAdd(&counts[min(digits[i], past)], 1u);
  }
}

__device__ __forceinline__ uint32_t scan_warp(uint32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
#pragma unroll
  for (int step = 1; step < kWarpThreads; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// Sums of `value` over the threads before this one, and over all. One barrier; the next one must
// come before it is called again.
template <typename Shape>
__device__ __forceinline__ uint2 scan_block(uint32_t value, uint32_t* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const uint32_t inclusive = scan_warp(value);
  if (lane == kWarpThreads - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  const uint32_t sum = lane < Shape::kWarps ? warp_sums[lane] : 0;
  const uint32_t before = __reduce_add_sync(kAllLanes, lane < warp ? sum : 0u);
  return make_uint2(before + inclusive - value, __reduce_add_sync(kAllLanes, sum));
}

// The part of a bracket with the digit at place `rank`; clears the counts.
template <typename Shape>
__device__ __forceinline__ Bracket narrow(const Bracket& bracket, uint32_t rank, int shift,
                                          SelectShared& shared) {
  constexpr int kMine = kDigits / Shape::kThreads;
  static_assert(kMine % 4 == 0, "read by four");
  uint32_t counts[kMine];
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kMine; i += 4) {
    uint4& four = shared.digits[(threadIdx.x * kMine + i) / 4];
    counts[i] = four.x, counts[i + 1] = four.y, counts[i + 2] = four.z, counts[i + 3] = four.w;
    four = make_uint4(0, 0, 0, 0);
    sum += counts[i] + counts[i + 1] + counts[i + 2] + counts[i + 3];
  }
  const uint32_t before = scan_block<Shape>(sum, shared.warp_sums).x;
  const uint32_t place = rank - bracket.below - before;
  if (place < sum) {  // one thread: where it is too small, it wraps
    uint32_t digit = 0, start = 0, upto = 0, count = counts[0];
#pragma unroll
    for (int i = 1; i < kMine; ++i) {
      upto += counts[i - 1];
      if (place >= upto) digit = i, start = upto, count = counts[i];
    }
    shared.found.low = bracket.low + ((threadIdx.x * kMine + digit) << shift);
    shared.found.below = bracket.below + before + start;
    shared.found.count = count;
  }
  __syncthreads();
  return shared.found;
}

// Keys of which `wanted` are of the wanted rank or above, and `unwanted` are not.
struct Selected {
  uint32_t low;
  uint32_t unwanted;
  uint32_t wanted;
};

template <typename Shape>
__device__ __forceinline__ TileRows rows_at(int64_t base, int32_t size) {
  return rows_of<Shape>(static_cast<int>(min(size - base, static_cast<int64_t>(Shape::kTile))));
}

// Key number `rank` (0-based, ascending) of `size > rank` values, and those of its digits. They are
// all equal, unless (kBest) all of them are wanted. Counts are clear, a barrier since; `keys` holds
// the bits of a segment that fits the tile if `loaded`, and then, if anything was counted, its
// keys.
template <typename Shape, bool kBest>
__device__ __forceinline__ Selected select_rank(uint32_t (&keys)[Shape::kKeys], const float* values,
                                                int32_t size, int32_t rank, bool loaded,
                                                SelectShared& shared) {
  if (kBest && rank == 0) return {0, 0, static_cast<uint32_t>(size)};
  uint32_t padded = 0;
  for (int64_t base = 0; base < size; base += Shape::kTile) {
    const TileRows rows = rows_at<Shape>(base, size);
    if (!loaded) load_bits<Shape>(keys, values + base, rows);
    count_first_digits<Shape>(keys, rows, shared.counts());
    padded += static_cast<uint32_t>(rows.count * Shape::kThreads);
  }
  const uint32_t place = static_cast<uint32_t>(rank) + (padded - static_cast<uint32_t>(size));
  __syncthreads();
  Bracket bracket = narrow<Shape>({0, 0, padded}, place, 32 - kDigitBits, shared);
#pragma unroll 1
  for (int shift = 32 - kDigitBits; shift > 0 && !(kBest && place == bracket.below);) {
    const int next = max(shift - kDigitBits, 0);
    for (int64_t base = 0; base < size; base += Shape::kTile) {
      const TileRows rows = rows_at<Shape>(base, size);
      if (size > Shape::kTile) load_keys<Shape>(keys, values + base, rows);
      count_digits<Shape>(keys, rows, bracket.low, next, 1u << (shift - next), shared.counts());
    }
    __syncthreads();
    bracket = narrow<Shape>(bracket, place, next, shared);
    shift = next;
  }
  return {bracket.low, place - bracket.below, bracket.below + bracket.count - place};
}

}  // namespace erase_kernels
