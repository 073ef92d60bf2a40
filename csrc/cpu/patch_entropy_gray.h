// Gray levels of a row of pixels: plain loops, inlined into one function per instruction set.
#pragma once

#include <cstring>

#include "cpu/patch_entropy_kernels.h"

#define ERASE_KERNELS_INLINE static inline __attribute__((always_inline))

namespace erase_kernels {

// ITU-R BT.601. Every product and sum is rounded by itself: see docs in patch_entropy.py.
constexpr float kLumaRed = 0.299f;
constexpr float kLumaGreen = 0.587f;
constexpr float kLumaBlue = 0.114f;
constexpr float kMaxLevel = 255.0f;

ERASE_KERNELS_INLINE float luma_sum(float red, float green, float blue) {
  return (kLumaRed * red + kLumaGreen * green) + kLumaBlue * blue;
}

ERASE_KERNELS_INLINE uint8_t luma(float red, float green, float blue) {
  return static_cast<uint8_t>(static_cast<int32_t>(luma_sum(red, green, blue)));
}

ERASE_KERNELS_INLINE void gray_planar(const uint8_t* __restrict__ red,
                                      const uint8_t* __restrict__ green,
                                      const uint8_t* __restrict__ blue, int64_t count,
                                      uint8_t* __restrict__ gray) {
  for (int64_t i = 0; i < count; ++i) gray[i] = luma(red[i], green[i], blue[i]);
}

ERASE_KERNELS_INLINE void gray_strided(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  const int64_t stride = row.stride;
  if (row.channels == 1) {
    for (int64_t i = 0; i < count; ++i) gray[i] = row.channel[0][i * stride];
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    gray[i] =
        luma(row.channel[0][i * stride], row.channel[1][i * stride], row.channel[2][i * stride]);
  }
}

ERASE_KERNELS_INLINE float to_float(float value) { return value; }

ERASE_KERNELS_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ERASE_KERNELS_INLINE float to_float(BFloat16 value) {
  return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

// Exponent and fraction move to their float places; a power of two corrects the exponent bias and
// makes subnormals right. Infinities and NaN get the largest exponent afterwards.
ERASE_KERNELS_INLINE float to_float(Half value) {
  constexpr float kBias = 0x1p112f;  // 2^(127 - 15)
  constexpr uint32_t kExponent = 0x7c00u;
  const uint32_t bits = value.bits;
  float magnitude = from_bits((bits & 0x7fffu) << 13) * kBias;
  uint32_t word;
  std::memcpy(&word, &magnitude, sizeof word);
  word |= (bits & kExponent) == kExponent ? 0x7f800000u : 0u;
  return from_bits(word | (bits & 0x8000u) << 16);
}

// floor(x + 0.5) clamped to 0..255: clamping first makes truncation and floor agree, and NaN 0.
ERASE_KERNELS_INLINE float nearest_level(float exact) {
  float level = exact + 0.5f;
  level = level > 0.0f ? level : 0.0f;
  level = level < kMaxLevel ? level : kMaxLevel;
  return static_cast<float>(static_cast<int32_t>(level));
}

// The magnitude's bits: as integers they order as the magnitudes do, NaN above all numbers.
ERASE_KERNELS_INLINE int32_t magnitude_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
}

// Levels of up to kChunk pixels as 32-bit integers, so that the loop has one width throughout.
// Returns the largest distance from an integer, as magnitude_bits.
template <typename T, int kChannels>
ERASE_KERNELS_INLINE int32_t levels_from_pixels(const T* __restrict__ red,
                                                const T* __restrict__ green,
                                                const T* __restrict__ blue, int64_t stride,
                                                const PixelStatistics& s, int64_t count,
                                                int32_t* __restrict__ levels) {
  int32_t worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T stored[3] = {red[i * stride], green[i * stride], blue[i * stride]};
    float level[kChannels];
    for (int c = 0; c < kChannels; ++c) {
      const float exact = (to_float(stored[c]) * s.std[c] + s.mean[c]) * s.scale;
      level[c] = nearest_level(exact);
      const int32_t distance = magnitude_bits(exact - level[c]);
      worst = distance > worst ? distance : worst;
    }
    levels[i] = static_cast<int32_t>(
        kChannels == 1 ? level[0] : luma_sum(level[0], level[kChannels / 2], level[kChannels - 1]));
  }
  return worst;
}

constexpr int64_t kChunk = 256;  // pixels

template <typename T, int kChannels, bool kUnitStride>
ERASE_KERNELS_INLINE bool gray_from_pixels(const PixelRow<T>& row,
                                           const PixelStatistics& statistics, int64_t count,
                                           uint8_t* __restrict__ gray) {
  const int64_t stride = kUnitStride ? 1 : row.stride;
  const PixelStatistics s = statistics;
  int32_t worst = 0;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t length = count - start < kChunk ? count - start : kChunk;
    const int64_t at = start * stride;
    alignas(64) int32_t levels[kChunk];
    const int32_t distance = levels_from_pixels<T, kChannels>(
        row.channel[0] + at, row.channel[1] + at, row.channel[2] + at, stride, s, length, levels);
    worst = distance > worst ? distance : worst;
    for (int64_t i = 0; i < length; ++i) gray[start + i] = static_cast<uint8_t>(levels[i]);
  }
  return worst <= magnitude_bits(s.tolerance);
}

template <typename T>
ERASE_KERNELS_INLINE bool gray_from_pixels(const PixelRow<T>& row,
                                           const PixelStatistics& statistics, int64_t count,
                                           uint8_t* gray) {
  if (row.channels == 1) {
    return row.stride == 1 ? gray_from_pixels<T, 1, true>(row, statistics, count, gray)
                           : gray_from_pixels<T, 1, false>(row, statistics, count, gray);
  }
  return row.stride == 1 ? gray_from_pixels<T, 3, true>(row, statistics, count, gray)
                         : gray_from_pixels<T, 3, false>(row, statistics, count, gray);
}

}  // namespace erase_kernels
