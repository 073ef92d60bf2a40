// Second half of text_to_vision_scores: sums over the rows for each listed column. Here the keys of
// up to 128 columns stay in a block's registers and the packed query rows stream by, with their m
// and 1 / l: the logits are computed again, and each thread adds exp2(logit - m) / l to the sums of
// its four columns. The last kernel adds key heads and deals in their order.
#pragma once

#include "cuda/scores_tile.cuh"
#include "cuda/status.h"

namespace erase_kernels {

struct ColumnsPlan {
  int32_t planes;  // key heads, or query heads where they stay apart
  int32_t heads;   // query heads of a plane
  int32_t deals;   // blocks among which the packed rows of a plane are dealt
  float divisor;   // of the sums
};

// How many segments end at or before an entry; all threads of a block ask together.
__device__ __forceinline__ int32_t segments_before(const int32_t* offsets, int32_t batch,
                                                   int32_t entry) {
  int32_t count = 0;
  for (int32_t first = 0; first < batch; first += blockDim.x) {
    const int32_t i = first + threadIdx.x;
    count += __syncthreads_count(i < batch && offsets[i + 1] <= entry);
  }
  return count;
}

// One thread's four columns. Lane i holds the limit of streamed row i; weights are (m, 1 / l);
// visible are the warp's columns.
// kHidden: some row may not see some column. A row whose weight is NaN must not spoil columns that
// it may not see.
template <bool kHidden>
__device__ __forceinline__ void add_columns(float (&sums)[4], const Logits& logits,
                                            const float2* weights, float scale, int32_t limit,
                                            const int32_t* visible) {
  const int g = threadIdx.x % kWarpThreads / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float4 pair = *reinterpret_cast<const float4*>(weights + 8 * j + 2 * t);
    int32_t limits[2] = {0, 0};
    if constexpr (kHidden) {
      limits[0] = __shfl_sync(kAllLanes, limit, 8 * j + 2 * t);
      limits[1] = __shfl_sync(kAllLanes, limit, 8 * j + 2 * t + 1);
    }
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const float (&mine)[4] = logits[column / 2][j];
      const int h = 2 * (column % 2);
      const float first = exp2_approximate(fmaf(mine[h], scale, -pair.x));
      const float second = exp2_approximate(fmaf(mine[h + 1], scale, -pair.z));
      if (!kHidden || visible[8 * column + g] <= limits[0])
        sums[column] = fmaf(first, pair.y, sums[column]);
      if (!kHidden || visible[8 * column + g] <= limits[1])
        sums[column] = fmaf(second, pair.w, sums[column]);
    }
  }
}

// What a block does for one batch row. Kept in shared memory: registers are for operands and sums.
struct ColumnsJob {
  int64_t query_base, key_base;  // of the key head's first query head, and of its keys
  int64_t entries_start;         // of the plane's rows in the table of rows
  int64_t statistics_start;      // of the key head
  int32_t batch, last_batch;
  int32_t deal;       // which packed rows
  int32_t count;      // of packed rows
  int32_t step;       // from one to the next in the table
  int32_t low, high;  // the batch row's columns
};

__device__ __forceinline__ ColumnsJob columns_job(const ScoreProblem& p, const ColumnsPlan& plan,
                                                  int32_t batch, int32_t last_batch) {
  ColumnsJob job;
  job.deal = blockIdx.x % plan.deals;
  const int32_t plane = blockIdx.x / plan.deals % plan.planes;
  const int32_t head = plane * plan.heads / p.group;  // of the keys
  job.batch = batch;
  job.last_batch = last_batch;
  if (batch > last_batch) return job;
  const Segment rows = segment_of(p.row_offsets, batch, p.row_count);
  const Segment listed = segment_of(p.column_offsets, batch, p.column_count);
  job.query_base = base_of(p.query, batch, head * p.group);
  job.key_base = base_of(p.key, batch, head);
  job.entries_start =
      static_cast<int64_t>(rows.start) * p.group + plane * plan.heads - head * p.group;
  job.statistics_start = static_cast<int64_t>(head) * p.row_count * p.group;
  job.step = p.group / plan.heads;
  job.count = (rows.end - rows.start) * plan.heads;
  job.low = listed.start;
  job.high = listed.end;
  return job;
}

// Finds a thread's four columns from column `first` of its warp on, and writes where they are.
// Returns the highest position in the warp, kNowhere if one may not be seen.
__device__ __forceinline__ int32_t find_columns(const ScoreProblem& p, const ColumnsJob& job,
                                                int32_t first, int64_t (&starts)[4],
                                                int32_t* visible) {
  const int g = threadIdx.x % kWarpThreads / 4;
  int32_t highest = -1;
#pragma unroll
  for (int column = 0; column < 4; ++column) {
    const int32_t i = first + 8 * column + g;
    const int32_t position = i >= job.low && i < job.high ? p.columns[i] : -1;
    starts[column] = place_of(p.key, job.key_base, position, p.keys);
    const int32_t seen = visible_position(p, job.batch, position);
    if (threadIdx.x % 4 == 0) visible[8 * column + g] = seen;
    highest = max(highest, seen);
  }
  return __reduce_max_sync(kAllLanes, highest);
}

// Adds what the four threads that share columns have, and writes it.
__device__ __forceinline__ void write_columns(const ScoreProblem& p, const ColumnsPlan& plan,
                                              const float (&sums)[4], int32_t first,
                                              float* scores) {
  const int64_t plane = blockIdx.x / plan.deals % plan.planes, deal = blockIdx.x % plan.deals;
#pragma unroll
  for (int column = 0; column < 4; ++column) {
    float sum = sums[column];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    sum /= plan.divisor;
    const int32_t i = first + 8 * column + threadIdx.x % kWarpThreads / 4;
    if (threadIdx.x % 4 != 0 || i >= p.column_count) continue;
    if (sum != sum) set_status(p.status, kStatusScores);
    scores[(deal * plan.planes + plane) * p.column_count + i] = sum;
  }
}

// The first column of this thread's warp.
__device__ __forceinline__ int32_t warp_column(const ColumnsPlan& plan) {
  const int32_t block = blockIdx.x / plan.deals / plan.planes;
  return (block * (blockDim.x / kWarpThreads) + threadIdx.x / kWarpThreads) * kStationary;
}

// Grid: blocks of columns * planes * deals; any number of warps up to kMostWarps.
// A block may hold columns of several batch rows, which are taken one after the other.
template <typename State, int kChunks, bool kDeep>
__global__ void __launch_bounds__(kMostWarps* kWarpThreads, kDeep ? 2 : kBlocksPerMultiprocessor)
    text_to_vision_scores_columns_kernel(const __grid_constant__ ScoreProblem p,
                                         const __grid_constant__ ColumnsPlan plan,
                                         const float2* statistics,  // [key heads, rows, group]
                                         const RowEntry* table,     // [rows, group]
                                         float* scores)             // [deals, planes, columns]
{
  using S = Stage<State, kChunks>;
  ERASE_SHARED(ColumnsJob, shared_job, [1]);
  ERASE_SHARED(int32_t, shared_visible, [kMostWarps][kStationary]);
  const int lane = threadIdx.x % kWarpThreads;
  const ColumnsJob& job = shared_job[0];
  int32_t* visible = shared_visible[threadIdx.x / kWarpThreads];
  uint4* ring = dynamic_shared<uint4>();
  float2* weights = reinterpret_cast<float2*>(ring + State::kStages * S::kUnits);

  const int32_t block_columns = blockDim.x / kWarpThreads * kStationary;
  const int32_t start = blockIdx.x / plan.deals / plan.planes * block_columns;
  const int32_t last = start + min(p.column_count - start, block_columns) - 1;
  const int32_t first_batch = segments_before(p.column_offsets, p.batch, start);
  const int32_t last_batch = min(segments_before(p.column_offsets, p.batch, last), p.batch - 1);
  if (threadIdx.x == 0) shared_job[0] = columns_job(p, plan, first_batch, last_batch);
  __syncthreads();

  const auto item_of = [&](int tile) {  // packed row of this lane
    return (tile * plan.deals + job.deal) * kStreamed + lane;
  };
  // Packed rows of a plane are all those of the key head, or every group-th of them.
  const auto place = [&](int32_t item) {
    return job.entries_start + static_cast<int64_t>(item) * job.step;
  };
  const auto start_at = [&](int tile) {
    const int32_t item = item_of(tile);
    if (item >= job.count) return static_cast<int64_t>(-1);
    const int64_t offset = table[place(item)].offset;
    return offset < 0 ? offset : job.query_base + offset;
  };
  const auto copy_weight = [&](int tile, int slot) {
    if (threadIdx.x >= kStreamed) return;
    const int32_t item = item_of(tile);
    const bool exists = item < job.count;
    const float2* source = statistics + (exists ? job.statistics_start + place(item) : 0);
    cp_async<sizeof(float2)>(weights + slot * kStreamed + lane, source, exists);
  };
  const auto limit_at = [&](int tile) {
    const int32_t item = item_of(tile);
    return item < job.count ? table[place(item)].limit : -1;
  };
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  while (job.batch <= job.last_batch) {
    int32_t highest = 0, next = 0;
    const auto find = [&](int64_t (&starts)[4]) {
      highest = find_columns(p, job, warp_column(plan), starts, visible);
      next = limit_at(0);
    };
    const int32_t row_tiles = (job.count + kStreamed - 1) / kStreamed;
    const int tiles = max((row_tiles - job.deal + plan.deals - 1) / plan.deals, 0);
    stream<State, kChunks, kDeep>(
        p, p.key, p.query, tiles, warp_column(plan) < p.column_count, ring, find, start_at,
        copy_weight, [&](int tile, int slot, Logits& logits) {
          const int32_t limit = next;  // read while the tile before was multiplied
          next = limit_at(tile + 1);
          const float2* mine = weights + slot * kStreamed;
          if (highest > __reduce_min_sync(kAllLanes, limit))
            add_columns<true>(sums, logits, mine, p.scale, limit, visible);
          else
            add_columns<false>(sums, logits, mine, p.scale, limit, visible);
        });
    if (threadIdx.x == 0) shared_job[0] = columns_job(p, plan, job.batch + 1, job.last_batch);
    __syncthreads();
  }
  write_columns(p, plan, sums, warp_column(plan), scores);
}

constexpr int kSumThreads = 256;

// Adds the parts of every score in their order and divides. The mean of no heads is NaN.
__global__ void __launch_bounds__(kSumThreads)
    text_to_vision_scores_sum_kernel(const float* parts,  // [parts, count]
                                     int32_t part_count, int64_t count, float divisor,
                                     int32_t* status, float* scores)  // [count]
{
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int32_t part = 0; part < part_count; ++part) sum += parts[part * count + i];
  sum /= divisor;
  if (sum != sum) set_status(status, kStatusScores);
  scores[i] = sum;
}

}  // namespace erase_kernels
