// First half of text_to_vision_scores: m and l of every packed query row, where m is its largest
// visible logit in units of log2 and l the sum of exp2(logit - m). They stay apart because a
// logarithm of l would cost precision. Packed rows: the query heads of a key head and the rows of a
// batch row are one list, row-major. A block takes a part of a key head's keys and up to four
// warps of packed rows, which stay where they are while the keys stream by; each thread keeps a
// maximum and a sum for its four rows, so that nothing is exchanged until the end. The second
// kernel joins the parts in their order.
#pragma once

#include "cuda/scores_tile.cuh"
#include "cuda/status.h"

namespace erase_kernels {

// Adds what another part of the keys says of a row to (m, l).
__device__ __forceinline__ void join(float& m, float& l, float other_m, float other_l) {
  const float larger = fmaxf(m, other_m);
  if (larger == -INFINITY) {
    l += other_l;  // 0, or NaN
    return;
  }
  l = l * exp2_approximate(m - larger) + other_l * exp2_approximate(other_m - larger);
  m = larger;
}

// One thread's four rows.
struct RowStatistics {
  float top[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // largest logit, not scaled
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ __forceinline__ void add(const Logits& logits, float scale) {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const float (&mine)[4][4] = logits[row / 2];
      const int h = 2 * (row % 2);
      float largest = top[row];
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = fmaxf(largest, fmaxf(mine[j][h], mine[j][h + 1]));
      if (largest > top[row]) {
        sum[row] *= exp2_approximate(top[row] * scale - largest * scale);
        top[row] = largest;
      }
      const float shift = largest == -INFINITY ? 0.0f : largest * scale;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[row] += exp2_approximate(fmaf(mine[j][h], scale, -shift));
        sum[row] += exp2_approximate(fmaf(mine[j][h + 1], scale, -shift));
      }
    }
  }
};

// Logits that a row may not see become -inf. Lane i holds what streamed key i is, see
// visible_position; limits are those of the warp's rows.
__device__ __forceinline__ void hide(Logits& logits, int32_t visible, const int32_t* limits) {
  const int g = threadIdx.x % kWarpThreads / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int column = 0; column < 8; ++column) {
    const int j = column / 2, c = column % 2;
    const int32_t position = __shfl_sync(kAllLanes, visible, 8 * j + 2 * t + c);
#pragma unroll
    for (int row = 0; row < 4; ++row)
      if (position > limits[8 * row + g]) logits[row / 2][j][2 * (row % 2) + c] = kNoLogit;
  }
}

struct RowsPlan {
  int32_t splits;          // parts of the keys
  int32_t keys_per_split;  // a multiple of a stage
  int32_t deals;           // blocks among which the packed rows of a key head are dealt
};

// What a block does. Kept in shared memory: registers are for operands and sums.
struct RowsJob {
  int64_t key_base;          // of the key head
  int64_t parts_start;       // of the results
  int32_t batch, head;       // of the keys
  int32_t deal;              // which packed rows
  int32_t row_start, count;  // packed rows
  int32_t listed_start;      // of the columns
  int32_t low, high;         // keys, or listed columns
};

__device__ __forceinline__ RowsJob rows_job(const ScoreProblem& p, const RowsPlan& plan) {
  RowsJob job;
  job.deal = blockIdx.x % plan.deals;
  job.head = blockIdx.x / plan.deals % p.key_heads;
  job.batch = blockIdx.x / plan.deals / p.key_heads % p.batch;
  const int32_t split = blockIdx.x / plan.deals / p.key_heads / p.batch;
  const Segment rows = segment_of(p.row_offsets, job.batch, p.row_count);
  const Segment listed = segment_of(p.column_offsets, job.batch, p.column_count);
  job.key_base = base_of(p.key, job.batch, job.head);
  job.row_start = rows.start;
  job.count = (rows.end - rows.start) * p.group;
  const int64_t plane = static_cast<int64_t>(split) * p.key_heads + job.head;
  job.parts_start = (plane * p.row_count + rows.start) * p.group;
  job.listed_start = listed.start;
  job.low = split * plan.keys_per_split;
  const int32_t total = p.listed ? listed.end - listed.start : p.keys;
  job.high = job.low + max(min(total - job.low, plan.keys_per_split), 0);
  return job;
}

// The position of a key, by its number among those of the softmax; -1 beyond the block's last one.
__device__ __forceinline__ int32_t key_position(const ScoreProblem& p, const RowsJob& job,
                                                int32_t item) {
  if (item >= job.high) return -1;
  return p.listed ? p.columns[job.listed_start + item] : item;
}

// Finds a thread's four rows from packed row `first` of its warp on, and writes what they may see.
// Returns the least of that over the warp.
__device__ __forceinline__ int32_t find_rows(const ScoreProblem& p, const RowsJob& job,
                                             int32_t first, int64_t (&starts)[4], int32_t* limits) {
  const int g = threadIdx.x % kWarpThreads / 4;
  int32_t lowest = kNowhere - 1;
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const int32_t packed = first + 8 * row + g;
    const int32_t position = packed < job.count ? p.rows[job.row_start + packed / p.group] : -1;
    const int64_t base = base_of(p.query, job.batch, job.head * p.group + packed % p.group);
    starts[row] = place_of(p.query, base, position, p.queries);
    const int32_t limit = starts[row] < 0 ? kNowhere - 1 : limit_of(p, position);
    if (threadIdx.x % 4 == 0) limits[8 * row + g] = limit;
    lowest = min(lowest, limit);
  }
  return __reduce_min_sync(kAllLanes, lowest);
}

// Joins the statistics of the four threads that share rows, and writes them.
__device__ __forceinline__ void write_rows(const RowsJob& job, const RowStatistics& statistics,
                                           float scale, int32_t first, float2* parts) {
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    float m = statistics.top[row] * scale, l = statistics.sum[row];
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      const float other_m = __shfl_xor_sync(kAllLanes, m, other);
      join(m, l, other_m, __shfl_xor_sync(kAllLanes, l, other));
    }
    const int32_t packed = first + 8 * row + threadIdx.x % kWarpThreads / 4;
    if (threadIdx.x % 4 == 0 && packed < job.count)
      parts[job.parts_start + packed] = make_float2(m, l);
  }
}

// Grid: splits * batch * key heads * deals; any number of warps up to kMostWarps.
template <typename State, int kChunks, bool kDeep>
__global__ void __launch_bounds__(kMostWarps* kWarpThreads, kDeep ? 2 : kBlocksPerMultiprocessor)
    text_to_vision_scores_rows_kernel(const __grid_constant__ ScoreProblem p,
                                      const __grid_constant__ RowsPlan plan,
                                      float2* parts)  // (m, l) [splits, key heads, rows, group]
{
  ERASE_SHARED(RowsJob, shared_job, [1]);
  ERASE_SHARED(int32_t, shared_limits, [kMostWarps][kStationary]);
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  const RowsJob& job = shared_job[0];
  int32_t* limits = shared_limits[warp];
  uint4* ring = dynamic_shared<uint4>();
  if (threadIdx.x == 0) shared_job[0] = rows_job(p, plan);
  __syncthreads();

  const int tiles = (job.high - job.low + kStreamed - 1) / kStreamed;
  const auto start_at = [&](int tile) {
    const int32_t position = key_position(p, job, job.low + tile * kStreamed + lane);
    return place_of(p.key, job.key_base, position, p.keys);
  };
  const auto visible_at = [&](int tile) {
    const int32_t position = key_position(p, job, job.low + tile * kStreamed + lane);
    return visible_position(p, job.batch, position);
  };
  const int32_t block_rows = blockDim.x / kWarpThreads * kStationary;
  for (int32_t first = job.deal * block_rows; first < job.count; first += plan.deals * block_rows) {
    const int32_t mine = first + warp * kStationary;
    RowStatistics statistics;
    int32_t lowest = 0, next = 0;
    const auto find = [&](int64_t (&starts)[4]) {
      lowest = find_rows(p, job, mine, starts, limits);
      next = visible_at(0);
    };
    stream<State, kChunks, kDeep>(
        p, p.query, p.key, tiles, mine < job.count, ring, find, start_at, [](int, int) {},
        [&](int tile, int, Logits& logits) {
          const int32_t visible = next;  // read while the tile before was multiplied
          next = visible_at(tile + 1);
          if (__reduce_max_sync(kAllLanes, visible) > lowest) hide(logits, visible, limits);
          statistics.add(logits, p.scale);
        });
    write_rows(job, statistics, p.scale, mine, parts);
  }
}

// Sets a bit where the offset at `i` is not 0, falls or misses the total.
__device__ __forceinline__ void flag_offsets(const ScoreProblem& p, const int32_t* offsets,
                                             int64_t i, int32_t total) {
  if (i > p.batch) return;
  const bool falls = i < p.batch && offsets[i] > offsets[i + 1];
  if (falls || (i == 0 && offsets[0] != 0) || (i == p.batch && offsets[i] != total))
    set_status(p.status, kStatusOffsets);
}

__device__ __forceinline__ void flag_index(const ScoreProblem& p, const int32_t* indices, int64_t i,
                                           int32_t total, int32_t limit) {
  if (i < total && (indices[i] < 0 || indices[i] >= limit)) set_status(p.status, kStatusIndices);
}

// Where there is no row, zeros stand for it, whose product with infinity must not count.
__device__ __forceinline__ RowEntry entry_of(const ScoreProblem& p, int32_t position,
                                             int32_t head) {
  if (position < 0 || position >= p.queries) return {-1, -1};
  return {position * p.query.row + head * p.query.head, limit_of(p, position)};
}

constexpr int kJoinedRows = 32;  // of a block of the kernel below
constexpr int kJoinGroups = 8;   // of parts, each joined by a thread

// (m, 1 / l) of every packed row over all keys, (inf, 0) where there is no such query; the table of
// rows; and the checks of all indices. Grid: enough blocks of 256 for the rows (32 each), and for
// the checks.
__global__ void __launch_bounds__(kJoinedRows* kJoinGroups)
    text_to_vision_scores_combine_kernel(const __grid_constant__ ScoreProblem p, int32_t splits,
                                         int32_t heads,        // 0: checks only
                                         const float2* parts,  // [splits, heads * rows]
                                         float2* statistics,   // [heads * rows]
                                         RowEntry* table)      // [rows, group]
{
  ERASE_SHARED(float2, joined, [kJoinGroups][kJoinedRows]);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (heads > 0 && i < static_cast<int64_t>(p.row_count) * p.group)
    table[i] = entry_of(p, p.rows[i / p.group], static_cast<int32_t>(i % p.group));
  flag_offsets(p, p.row_offsets, i, p.row_count);
  flag_offsets(p, p.column_offsets, i, p.column_count);
  flag_index(p, p.rows, i, p.row_count, p.queries);
  flag_index(p, p.columns, i, p.column_count, p.keys);

  const int64_t count = static_cast<int64_t>(heads) * p.row_count;
  const int row = threadIdx.x % kJoinedRows, group = threadIdx.x / kJoinedRows;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * kJoinedRows + row;
  float m = -INFINITY, l = 0.0f;
  if (entry < count) {
#pragma unroll 4
    for (int32_t part = group; part < splits; part += kJoinGroups) {
      const float2 other = parts[part * count + entry];
      join(m, l, other.x, other.y);
    }
  }
  joined[group][row] = make_float2(m, l);
  __syncthreads();
  if (group != 0 || entry >= count) return;
  for (int other = 1; other < kJoinGroups; ++other)
    join(m, l, joined[other][row].x, joined[other][row].y);
  const int32_t position = p.rows[entry / p.group % p.row_count];
  const bool exists = position >= 0 && position < p.queries;
  if (l == 0.0f) l = 1.0f;  // a row that sees nothing
  statistics[entry] = exists ? make_float2(m, 1.0f / l) : make_float2(INFINITY, 0.0f);
}

}  // namespace erase_kernels
