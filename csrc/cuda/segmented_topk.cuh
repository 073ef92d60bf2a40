// The best scores of every segment as ascending indices: a block to a segment, whose scores stay in
// registers up to 16 384. It finds the lowest kept key (select_rank.cuh), sums the counts of the
// segments before it, so that no block waits for another, and writes (select_kept.cuh). Offsets,
// counts and, as if all segments had the same size, scores are read at once: where the guess is
// right, as it is for one segment, no load waits for another. What is left of the output after the
// last entry is -1, shared out among the blocks. Considered: a chain of blocks that hand their sums
// on (waiting between blocks), several blocks to a long segment (the same, or clusters).
#pragma once

#include "cuda/select_kept.cuh"
#include "cuda/status.h"

namespace erase_kernels {

struct TopkProblem {
  const float* score;      // [scores]
  const int32_t* offsets;  // [segments + 1]
  const int32_t* counts;   // [segments]
  int32_t* indices;        // [capacity]
  int32_t* out_offsets;    // [segments + 1]
  int32_t* status;
  int64_t scores;
  int64_t segments;
  int64_t capacity;
  int64_t mean_size;  // of a segment, rounded down
};

constexpr uint32_t kMostEntries = 0x7fffffffu;  // overlapping segments can add up to anything

// Entries of the segments before one, and of all, in every warp; at most kMostEntries.
struct EntrySums {
  uint32_t before;
  uint32_t total;
};

// Of values up to kMostEntries.
__device__ __forceinline__ uint32_t sum_warp(uint32_t value) {
  const uint64_t upper = __reduce_add_sync(kAllLanes, value >> 16);
  const uint64_t sum = (upper << 16) + __reduce_add_sync(kAllLanes, value & 0xffffu);
  return static_cast<uint32_t>(min(sum, static_cast<uint64_t>(kMostEntries)));
}

// Each warp's part, for a barrier before sum_warps; a bad segment has no entries.
template <typename Shape>
__device__ __forceinline__ void sum_entries(const TopkProblem& problem, int64_t segment,
                                            EntrySums* parts) {
  uint32_t before = 0, total = 0;
#pragma unroll 1  // seldom more than one turn
  for (int64_t i = threadIdx.x; i < problem.segments; i += Shape::kThreads) {
    const int32_t start = __ldg(problem.offsets + i), end = __ldg(problem.offsets + i + 1);
    const int32_t count = __ldg(problem.counts + i);
    const bool good =
        start >= 0 && start <= end && end <= problem.scores && count >= 0 && count <= end - start;
    const uint32_t entries = good ? static_cast<uint32_t>(count) : 0u;
    total = min(total + entries, kMostEntries);
    if (i < segment) before = min(before + entries, kMostEntries);
  }
  before = sum_warp(before);
  total = sum_warp(total);
  if (threadIdx.x % kWarpThreads == 0) parts[threadIdx.x / kWarpThreads] = {before, total};
}

template <typename Shape>
__device__ __forceinline__ EntrySums sum_warps(const EntrySums* parts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const EntrySums mine = lane < Shape::kWarps ? parts[lane] : EntrySums{0, 0};
  return {sum_warp(mine.before), sum_warp(mine.total)};
}

// -1 at [first, end), or one of `parts` equal parts of it.
template <typename Shape>
__device__ __forceinline__ void fill_indices(int32_t* indices, int64_t first, int64_t end,
                                             int64_t part, int64_t parts) {
  if (first >= end) return;
  const int64_t share = (end - first) / parts + 1;
  const int64_t start = first + part * share;
  const int64_t stop = min(start + share, end);
#pragma unroll 1  // seldom any
  for (int64_t i = start + threadIdx.x; i < stop; i += Shape::kThreads) indices[i] = -1;
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    segmented_topk_kernel(const __grid_constant__ TopkProblem problem) {
  ERASE_SHARED(SelectShared, shared, [1]);
  ERASE_SHARED(EntrySums, parts, [Shape::kWarps]);
  ERASE_SHARED(uint16_t, stage, [Shape::kTile]);
  const int64_t segment = blockIdx.x;
  const bool present = segment < problem.segments;  // false if there are none
  const int32_t start = present ? __ldg(problem.offsets + segment) : 0;
  const int32_t end = present ? __ldg(problem.offsets + segment + 1) : 0;
  const int32_t count = present ? __ldg(problem.counts + segment) : 0;
  const int32_t origin = __ldg(problem.offsets), last = __ldg(problem.offsets + problem.segments);
  const int64_t guess = segment * problem.mean_size;
  const bool guessing = problem.mean_size > 0 && problem.mean_size <= Shape::kTile;
  uint32_t keys[Shape::kKeys];
  if (guessing)
    load_bits<Shape>(keys, problem.score + guess,
                     rows_of<Shape>(static_cast<int>(problem.mean_size)));
  clear_digits<Shape>(shared[0]);
  if (problem.segments > 1) sum_entries<Shape>(problem, segment, parts);
  const bool valid = start >= 0 && start <= end && end <= problem.scores;
  const int32_t size = valid ? end - start : 0;
  const bool possible = count >= 0 && count <= size;
  const bool wanted = valid && possible && count > 0;
  __syncthreads();
  Selected selected{0, 0, 0};
  if (wanted) {
    const bool loaded = guessing && start == guess && size == problem.mean_size;
    selected = select_rank<Shape, true>(keys, problem.score + start, size, size - count, loaded,
                                        shared[0]);
  }
  EntrySums sums{0, wanted ? static_cast<uint32_t>(count) : 0u};
  if (problem.segments > 1) sums = sum_warps<Shape>(parts);
  const int64_t before = min(static_cast<int64_t>(sums.before), problem.capacity);
  const int64_t fitting = min(static_cast<int64_t>(sums.total), problem.capacity);
  const bool fits = count <= problem.capacity - before;
  if (wanted && fits) {
    write_kept<Shape>(keys, problem.score + start, size,
                      {selected.low, selected.unwanted > 0, static_cast<int32_t>(selected.wanted)},
                      problem.indices + before, shared[0].warp_sums, stage);
  }
  if (threadIdx.x == 0) {
    int32_t bits = valid ? possible ? 0 : kStatusCounts : kStatusOffsets;
    if (segment == 0 && (origin != 0 || last != problem.scores)) bits |= kStatusOffsets;
    if (segment == 0 && sums.total > problem.capacity) bits |= kStatusCapacity;
    if (bits != 0) set_status(problem.status, bits);
    if (segment == 0) problem.out_offsets[problem.segments] = static_cast<int32_t>(fitting);
    if (present) problem.out_offsets[segment] = static_cast<int32_t>(before);
  }
  if (wanted && !fits) fill_indices<Shape>(problem.indices, before, problem.capacity, 0, 1);
  fill_indices<Shape>(problem.indices, fitting, problem.capacity, segment, gridDim.x);
}

}  // namespace erase_kernels
