// Order-preserving integer keys for floats, and selection by counting digits: integers only, so
// every platform agrees on every bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace erase_kernels {

// Unsigned key with a < b exactly when key(a) < key(b): -0 equals +0, every NaN is key 0, below
// -inf.
inline uint32_t order_key(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t infinity = 0x7f800000u;
  const uint32_t negative = bits >> 31;
  const uint32_t key = negative ? ~bits : bits | 0x80000000u;
  const uint32_t signless = magnitude == 0 ? 0x80000000u : key;
  return magnitude > infinity ? 0u : signless;
}

struct Selected {
  uint32_t key;   // the key at the wanted place of the ascending order
  int64_t below;  // how many keys are smaller than it
};

// Key number `place` (0-based) of the ascending order of keys[0..count-1]; three passes over 11,
// 11, 10 bits.
inline Selected select_key(const uint32_t* keys, int64_t count, int64_t place) {
  struct Digit {
    int shift;
    int bits;
  };
  constexpr std::array<Digit, 3> kDigits{{{21, 11}, {10, 11}, {0, 10}}};
  std::array<int64_t, 2048> histogram;
  uint32_t prefix = 0, prefix_mask = 0;
  int64_t below = 0;
  for (const Digit digit : kDigits) {
    const uint32_t mask = (1u << digit.bits) - 1;
    histogram.fill(0);
    for (int64_t i = 0; i < count; ++i)
      if ((keys[i] & prefix_mask) == prefix) ++histogram[(keys[i] >> digit.shift) & mask];
    uint32_t value = 0;
    while (below + histogram[value] <= place) below += histogram[value++];
    prefix |= value << digit.shift;
    prefix_mask |= mask << digit.shift;
  }
  return {prefix, below};
}

}  // namespace erase_kernels
