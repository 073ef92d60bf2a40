// How the cells of the entropy kernels are cut into tiles and spread over threads. Host side, plain
// numbers. A tile is what one block counts: up to kMostTileCells cells. Its pixels form lines of
// units; a unit is what one thread reads at once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace erase_kernels {

constexpr uint32_t kMostTileCells = 8;   // 8 KB of counters
constexpr int64_t kWantedTiles = 1024;   // fills every device; fewer cells make smaller tiles
constexpr uint32_t kLeastThreads = 128;  // of a block, multiples of a warp
constexpr uint32_t kMostThreads = 256;
constexpr uint32_t kThreadsOfAWarp = 32;
constexpr uint32_t kQuad = 4;  // pixels side by side in one cell

// Thread t begins with unit t % units of line t / units. Beyond the last whole line threads idle.
struct Spread {
  uint32_t units;            // of a line
  uint32_t lines_per_round;  // that a block reads at once; 1 if it takes several turns for a line
  uint64_t reciprocal;       // of units
};

// x * result >> 32 is x / divisor, rounded down, while x * divisor < 2^32.
inline uint64_t reciprocal_of(uint32_t divisor) {
  return ((uint64_t{1} << 32) + divisor - 1) / divisor;
}

inline Spread make_spread(uint32_t units, uint32_t threads) {
  return {units, std::max(threads / units, 1u), reciprocal_of(units)};
}

inline uint32_t tile_cells_of(int64_t cells) {
  uint32_t result = kMostTileCells;
  while (result > 1 && cells < kWantedTiles * result) result /= 2;
  return result;
}

// Instructions that a block issues for a tile of `lines` lines, as counted in machine code.
inline uint64_t tile_instructions(uint32_t units, uint64_t lines, uint32_t unit_instructions,
                                  uint32_t threads) {
  constexpr uint64_t kSetup = 150;  // of a warp
  const auto warps = [](uint64_t count) { return (count + kThreadsOfAWarp - 1) / kThreadsOfAWarp; };
  const uint64_t setup = kSetup * warps(threads);
  if (units > threads) return setup + unit_instructions * lines * warps(units);
  const uint64_t together = threads / units;
  const uint64_t turns =
      lines / together * warps(together * units) + warps(lines % together * units);
  return setup + unit_instructions * turns;
}

// The block size for which the instructions of all tiles are fewest. `instructions(threads)` are
// those of the loops over pixels.
template <typename Instructions>
uint32_t best_threads(const Instructions& instructions) {
  uint32_t best = kLeastThreads;
  for (uint32_t threads = best; threads <= kMostThreads; threads += kThreadsOfAWarp)
    if (instructions(threads) < instructions(best)) best = threads;
  return best;
}

}  // namespace erase_kernels
