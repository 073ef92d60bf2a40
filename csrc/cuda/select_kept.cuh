// Writes the places of kept keys, ascending. Rows become words of 32 flags by ballot, lane r of a
// warp keeps row r's, and one scan over the block of the words' counts, ties in the upper half,
// gives every row its place: two counts and six shuffles to a warp of 1 024 keys. Lanes list the
// bits of their words in shared memory, and the warp, whose places are consecutive, copies the list
// out in whole lines. Considered: a count of bits per key (16 a clock: 1 024 clocks), stores of
// single places (a sector each), a scan of counts of the threads' keys (registers hold columns).
#pragma once

#include "cuda/select_rank.cuh"

namespace erase_kernels {

// Which keys are kept: those above `low`, and of those equal to it all, or the first `ties`.
struct Kept {
  uint32_t low;
  bool choose;
  int32_t ties;
};

// One word of flags for row number `lane` of this warp.
struct RowFlags {
  uint32_t from;   // at or above the lowest kept key
  uint32_t equal;  // equal to it; 0 if there is no choice
};

template <typename Shape>
__device__ __forceinline__ RowFlags flag_rows(const uint32_t (&keys)[Shape::kKeys],
                                              const TileRows& rows, const Kept& kept) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int left = rows.left + lane - lane * kWarpThreads;  // from row `lane` on
  uint32_t valid = left >= kWarpThreads ? kAllLanes : left <= 0 ? 0u : (1u << left) - 1;
  if (lane >= rows.count) valid = 0;
  RowFlags flags{kept.low == 0 ? kAllLanes : 0u, 0};
  if (kept.low != 0) {  // else the keys may not even have been made
#pragma unroll
    for (int row = 0; row < Shape::kKeys; ++row) {
      if (row % kRowGroup == 0 && row >= rows.count) break;
      const uint32_t word = __ballot_sync(kAllLanes, keys[row] >= kept.low);
      if (lane == row) flags.from = word;
    }
  }
  if (kept.choose) {
#pragma unroll
    for (int row = 0; row < Shape::kKeys; ++row) {
      if (row % kRowGroup == 0 && row >= rows.count) break;
      const uint32_t word = __ballot_sync(kAllLanes, keys[row] == kept.low);
      if (lane == row) flags.equal = word;
    }
  }
  return {flags.from & valid, flags.equal & valid};
}

// The `most >= 0` lowest set bits of a word.
__device__ __forceinline__ uint32_t lowest_bits(uint32_t word, int most) {
  if (__popc(word) <= most) return word;
  int place = 0;  // becomes that of set bit number `most`
#pragma unroll
  for (int width = kWarpThreads / 2; width > 0; width /= 2) {
    const int passed = __popc(word >> place & ((1u << width) - 1));
    if (passed <= most) most -= passed, place += width;
  }
  return word & ((1u << place) - 1);
}

// How many keys of earlier tiles were kept, and how many ties there were.
struct Written {
  int32_t kept;
  int32_t ties;
};

// `stage` holds Shape::kTile places, in warps.
template <typename Shape>
__device__ __forceinline__ void write_tile(const uint32_t (&keys)[Shape::kKeys],
                                           const TileRows& rows, const Kept& kept, int64_t base,
                                           int32_t* indices, Written& written, uint32_t* warp_sums,
                                           uint16_t* stage) {
  constexpr int kWarpKeys = kWarpThreads * Shape::kKeys;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  uint16_t* list = stage + static_cast<int>(threadIdx.x) / kWarpThreads * kWarpKeys;
  const RowFlags flags = flag_rows<Shape>(keys, rows, kept);
  const uint32_t above = flags.from & ~flags.equal;
  const uint2 sums = scan_block<Shape>(__popc(above) | __popc(flags.equal) << 16, warp_sums);
  const int32_t ties_left = max(kept.ties - written.ties, 0);
  const int32_t ties_before = min(static_cast<int32_t>(sums.x >> 16), ties_left);
  uint32_t word = above | lowest_bits(flags.equal, ties_left - ties_before);
  const int32_t place = written.kept + static_cast<int32_t>(sums.x & 0xffffu) + ties_before;
  const int32_t first = __shfl_sync(kAllLanes, place, 0);
  const int32_t count =
      __shfl_sync(kAllLanes, place + __popc(word), kWarpThreads - 1) - first;  // of this warp
  for (uint16_t* next = list + (place - first); word != 0; word &= word - 1)
    *next++ = static_cast<uint16_t>(lane * kWarpThreads + __ffs(word) - 1);
  __syncwarp();
  const int32_t origin = static_cast<int32_t>(base) + rows.first;
  for (int i = lane; i < count; i += kWarpThreads) indices[first + i] = origin + list[i];
  const int32_t ties = static_cast<int32_t>(sums.y >> 16);
  written.kept += static_cast<int32_t>(sums.y & 0xffffu) + min(ties, ties_left);
  written.ties += ties;
}

// Writes the places of all kept keys of a segment. `keys` holds those of one that fits the tile.
template <typename Shape>
__device__ __forceinline__ void write_kept(uint32_t (&keys)[Shape::kKeys], const float* values,
                                           int32_t size, const Kept& kept, int32_t* indices,
                                           uint32_t* warp_sums, uint16_t* stage) {
  Written written{0, 0};
  for (int64_t base = 0; base < size; base += Shape::kTile) {
    const TileRows rows = rows_at<Shape>(base, size);
    if (size > Shape::kTile) load_keys<Shape>(keys, values + base, rows);
    if (base > 0) __syncthreads();  // sums and lists of the tile before are in use
    write_tile<Shape>(keys, rows, kept, base, indices, written, warp_sums, stage);
  }
}

}  // namespace erase_kernels
