// Half-precision bits to float, exactly, without instructions the baseline lacks.
#pragma once

#include <cstdint>
#include <cstring>

namespace erase_kernels {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen_bfloat16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Exact for every half, infinities and NaNs included: the exponent is rebased by a multiplication.
// (Subnormal halves become normal floats; they are lost only where the process flushes subnormals.)
inline float widen_half(uint16_t bits) {
  constexpr float kRebase = 5.192296858534828e33f;  // 2^112 = 2^(127 - 15)
  constexpr uint32_t kHalfInfinity = 0x7c00u << 13, kFloatInfinity = 0x7f800000u;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const float finite = from_bits(magnitude) * kRebase;
  uint32_t wide;
  std::memcpy(&wide, &finite, sizeof(wide));
  return from_bits((magnitude >= kHalfInfinity ? magnitude | kFloatInfinity : wide) | sign);
}

}  // namespace erase_kernels
