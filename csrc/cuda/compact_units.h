// What the compaction kernels share, on host and device: the units in which bytes move, and
// division by a number that the host knows.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace erase_kernels {

constexpr int kWidestUnit = 16;             // bytes of the widest load and store
constexpr int64_t kMostIndex = INT32_MAX;   // keep is int32
constexpr int64_t kMostBlocks = INT32_MAX;  // of a grid, CUDA Programming Guide

// Bytes a thread moves at once where `combined`, the bitwise or of every address, stride and size,
// says what divides them all: 16, 4, 2 or 1. (8 is too rare to be compiled for.)
inline int unit_of(int64_t combined) {
  if (combined % kWidestUnit == 0) return kWidestUnit;
  if (combined % 4 == 0) return 4;
  return combined % 2 == 0 ? 2 : 1;
}

inline int64_t ceil_divide(int64_t number, int64_t divisor) {
  return (number + divisor - 1) / divisor;
}

// n / divisor for n < 2^31 and 0 < divisor < 2^31. With 2^s >= divisor and a multiplier of
// 2^(31 + s) / divisor rounded up, the quotient is too large by less than n / 2^(31 + s) * divisor
// < 1 / divisor, so its integer part is right (Granlund and Montgomery, 1994).
struct FastDivide {
  uint32_t multiplier = 1u << 31;
  uint32_t shift = 31;

  FastDivide() = default;
  explicit FastDivide(int64_t divisor) {
    while (int64_t{1} << (shift - 31) < divisor) ++shift;
    multiplier =
        static_cast<uint32_t>(((uint64_t{1} << shift) + static_cast<uint64_t>(divisor) - 1) /
                              static_cast<uint64_t>(divisor));
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t n) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> shift);
  }
};

}  // namespace erase_kernels
