// Order-preserving integer keys for floats, and selection by counting digits: integers only, so
// every platform agrees on every bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "cpu/clones.h"

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

CPU_CLONES static void make_order_keys(const float* values, int64_t count, uint32_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = order_key(values[i]);
}

struct Selected {
  uint32_t key;   // the key at the wanted place of the ascending order
  int64_t below;  // how many keys are smaller than it
  int64_t equal;  // how many are equal to it
};

// Two histograms, so that neighbours with the same digit (flat images tie by the thousand) do not
// wait for each other's count.
constexpr int kMostDigits = 1 << 11;
struct DigitCounts {
  std::array<std::array<uint32_t, kMostDigits>, 2> counts;

  void count(const uint32_t* keys, int64_t size, int shift, uint32_t mask) {
    for (auto& half : counts) std::fill_n(half.begin(), mask + 1, 0u);
    int64_t i = 0;
    for (; i + 1 < size; i += 2) {
      ++counts[0][(keys[i] >> shift) & mask];
      ++counts[1][(keys[i + 1] >> shift) & mask];
    }
    if (i < size) ++counts[0][(keys[i] >> shift) & mask];
  }

  int64_t of(uint32_t digit) const {
    return static_cast<int64_t>(counts[0][digit]) + counts[1][digit];
  }
};

// Key number `place` (0-based) of the ascending order of keys[0..count-1]: digits of 11, 11 and 10
// bits, each pass over the keys that share the digits found so far. `spare` holds count keys and
// may be `keys` itself, which then is overwritten.
inline Selected select_key(const uint32_t* keys, int64_t count, int64_t place, uint32_t* spare) {
  struct Digit {
    int shift;
    uint32_t mask;
  };
  constexpr std::array<Digit, 3> kDigits{{{21, 0x7ffu}, {10, 0x7ffu}, {0, 0x3ffu}}};
  DigitCounts digits;
  Selected found{0, 0, 0};
  for (const Digit digit : kDigits) {
    digits.count(keys, count, digit.shift, digit.mask);
    uint32_t value = 0;
    while (found.below + digits.of(value) <= place) found.below += digits.of(value++);
    found.key |= value << digit.shift;
    found.equal = digits.of(value);
    if (digit.shift == 0) break;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t key = keys[i];
      spare[kept] = key;
      kept += ((key >> digit.shift) & digit.mask) == value;
    }
    keys = spare;
    count = kept;
  }
  return found;
}

}  // namespace erase_kernels
