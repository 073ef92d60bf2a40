// Lower median, level and kept count of every image: a block to an image, whose cells stay in
// registers up to 16 384 (select_rank.cuh). Offsets, thresholds, the table's row and, as if all
// images had the same size, the cells are read at once: where the guess is right, as it is for one
// image, no load waits for another. Block 0 also checks what concerns all images. Considered: a
// warp to a small image (fewer barriers, but its scan of a digit is 64 bins to a lane).
#pragma once

#include "cuda/select_rank.cuh"
#include "cuda/status.h"

namespace erase_kernels {

struct ComplexityProblem {
  const float* entropy;        // [cells]
  const int32_t* offsets;      // [images + 1]
  const float* thresholds;     // [thresholds_count]
  const int32_t* count_table;  // [images, thresholds_count + 1]
  float* median;               // [images]
  int32_t* level;              // [images]
  int32_t* count;              // [images]
  int32_t* status;
  int64_t cells;
  int64_t images;
  int64_t levels;     // thresholds
  int64_t mean_size;  // of an image, rounded down
};

// What only one block looks at.
template <typename Shape>
__device__ __forceinline__ void check_plan(const ComplexityProblem& problem) {
  const int64_t thread = threadIdx.x;
#pragma unroll 1
  for (int64_t i = thread; i + 1 < problem.levels; i += Shape::kThreads)
    if (!(__ldg(problem.thresholds + i) > __ldg(problem.thresholds + i + 1)))
      set_status(problem.status, kStatusThresholds);
  if (thread == 0 && (problem.offsets[0] != 0 || problem.offsets[problem.images] != problem.cells))
    set_status(problem.status, kStatusOffsets);
}

// First threshold below the median, else their number; by one warp. `limit` is threshold number
// `lane`, which was read early.
__device__ __forceinline__ int64_t level_of(float median, float limit,
                                            const ComplexityProblem& problem) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  for (int64_t first = 0; first < problem.levels; first += kWarpThreads) {
    const int64_t mine = first + lane;
    if (first > 0 && mine < problem.levels) limit = __ldg(problem.thresholds + mine);
    const uint32_t above = __ballot_sync(kAllLanes, mine < problem.levels && median > limit);
    if (above != 0) return first + __ffs(above) - 1;
  }
  return problem.levels;
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    complexity_plan_kernel(const __grid_constant__ ComplexityProblem problem) {
  ERASE_SHARED(SelectShared, shared, [1]);
  const int64_t image = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const bool present = image < problem.images;  // false if there are none
  const int32_t start = present ? __ldg(problem.offsets + image) : 0;
  const int32_t end = present ? __ldg(problem.offsets + image + 1) : 0;
  const int32_t* table_row = problem.count_table + image * (problem.levels + 1);
  const float limit = lane < problem.levels ? __ldg(problem.thresholds + lane) : 0.0f;
  const int32_t entry = present && lane <= problem.levels ? __ldg(table_row + lane) : 0;
  const int64_t guess = image * problem.mean_size;
  const bool guessing = problem.mean_size > 0 && problem.mean_size <= Shape::kTile;
  uint32_t keys[Shape::kKeys];
  if (guessing)
    load_bits<Shape>(keys, problem.entropy + guess,
                     rows_of<Shape>(static_cast<int>(problem.mean_size)));
  clear_digits<Shape>(shared[0]);
  if (image == 0) check_plan<Shape>(problem);
  const bool valid = start >= 0 && start <= end && end <= problem.cells;
  const int32_t size = valid ? end - start : 0;
  __syncthreads();
  uint32_t key = kZeroKey;
  if (size > 0) {
    const bool loaded = guessing && start == guess && size == problem.mean_size;
    key = select_rank<Shape, false>(keys, problem.entropy + start, size, (size - 1) / 2, loaded,
                                    shared[0])
              .low;
  }
  if (!present || threadIdx.x >= kWarpThreads) return;
  const float median = key_value(key);
  const int64_t level = valid ? level_of(median, limit, problem) : problem.levels;
  const int32_t early = __shfl_sync(kAllLanes, entry, static_cast<int>(level % kWarpThreads));
  if (lane != 0) return;
  if (!valid) set_status(problem.status, kStatusOffsets);
  problem.median[image] = median;
  problem.level[image] = static_cast<int32_t>(level);
  problem.count[image] = level < kWarpThreads ? early : table_row[level];
}

}  // namespace erase_kernels
