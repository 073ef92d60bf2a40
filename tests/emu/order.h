// Which block, warp and lane runs next.
#pragma once

#include <vector>

#include "emulator.h"

namespace emulator {

class Order {
 public:
  // "forward", "reverse" or "shuffled"; false for anything else.
  bool set(const char* name, uint64_t seed);
  // Of a launch. What is random depends on the seed and on what is launched, not on what ran
  // before: a failure repeats in a process of its own.
  void begin(const char* name, dim3 grid, dim3 block, size_t shared_bytes);
  std::vector<uint3> blocks(dim3 grid);
  // Whether warps run one after the other, in turns, or between: another choice every time.
  void choose_pace();

  // One of the bits of `ready`, which has some; `present` ran before.
  int warp(uint32_t ready, int present) {
    if (kind_ == kForward) return __builtin_ctz(ready);
    if (kind_ == kReverse) return 31 - __builtin_clz(ready);
    const bool stays = (ready >> present & 1u) != 0 && (next() & restless_) != 0;
    return stays ? present : some_bit(ready);
  }
  int lane(uint32_t ready) {
    if (kind_ == kForward) return __builtin_ctz(ready);
    return kind_ == kReverse ? 31 - __builtin_clz(ready) : some_bit(ready);
  }

 private:
  uint64_t next() {  // splitmix64
    uint64_t x = random_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  int some_bit(uint32_t mask) {
    const unsigned turn = next() % 32;
    const uint32_t turned = mask >> turn | mask << (-turn & 31u);
    return static_cast<int>((static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32);
  }

  enum Kind { kForward, kReverse, kShuffled } kind_ = kForward;
  uint64_t seed_ = 0, random_ = 0;
  uint64_t restless_ = 0;  // the more bits, the longer the same warp runs
};

}  // namespace emulator
