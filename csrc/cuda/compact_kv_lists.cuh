// Checks of keep lists and block tables for compact_kv.cuh. Every block of a move reads the whole
// list of its batch row, 10 KB that lie in the second-level cache after the first: cheaper than a
// launch of its own whose end all moves would wait for.
#pragma once

#include "cuda/compact_kv_plan.h"
#include "cuda/device.cuh"
#include "cuda/status.h"

namespace erase_kernels {

constexpr int kMoveWarps = kMoveThreads / kWarpThreads;
constexpr int kListAhead = 8;  // entries of the list that a thread loads at once

constexpr uint32_t kListStep = kListAhead * kMoveThreads;

// Slots in front that stay where they are; -1 if the list, whose entries there are `width` of, is
// bad. For all threads of a block. Loads of a step do not wait for each other, nor the first ones
// for `count`.
__device__ __forceinline__ int first_moved(const int32_t* slots, int count, uint32_t width,
                                           int length, int* warp_least) {
  int least = count;
  bool bad = false;
  for (uint32_t start = 0; start == 0 || start < static_cast<uint32_t>(count); start += kListStep) {
    int slot[kListAhead], before[kListAhead];
#pragma unroll
    for (int k = 0; k < kListAhead; ++k) {
      const uint32_t i = start + threadIdx.x + k * kMoveThreads;
      slot[k] = i < width ? __ldg(slots + i) : -1;
      before[k] = i > 0 && i < width ? __ldg(slots + i - 1) : -1;
    }
#pragma unroll
    for (int k = 0; k < kListAhead; ++k) {
      const uint32_t i = start + threadIdx.x + k * kMoveThreads;
      const bool kept = i < static_cast<uint32_t>(count);
      bad |= kept & ((slot[k] <= before[k]) | (slot[k] >= length));
      const int moved = kept & (slot[k] != static_cast<int>(i)) ? static_cast<int>(i) : count;
      least = min(least, moved);
    }
  }
  least = __reduce_min_sync(kAllLanes, bad ? -1 : least);
  if (threadIdx.x % kWarpThreads == 0) warp_least[threadIdx.x / kWarpThreads] = least;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kMoveWarps; ++warp) least = min(least, warp_least[warp]);
  return least;
}

// Whether the first `used` blocks exist and have one place in the whole table.
__device__ __forceinline__ bool good_blocks(const Paging& paging, const int32_t* blocks,
                                            uint32_t used) {
  bool bad = false;
  for (uint32_t j = threadIdx.x; j < used; j += kMoveThreads) {
    const int block = __ldg(blocks + j);
    const bool exists = block >= 0 && block < paging.blocks;
    bad |= !exists || __ldg(paging.users + block) != 1;
  }
  return !__syncthreads_or(bad);
}

// The blocks of one batch row from place `held` on; -1 before them.
__device__ __forceinline__ void write_freed(const Paging& paging, int64_t batch, int64_t held) {
  const int64_t start = batch * paging.width;
  for (int64_t j = threadIdx.x; j < paging.width; j += kMoveThreads)
    paging.freed[start + j] = j < held ? -1 : __ldg(paging.table + start + j);
}

// Block of entry `entry` of the whole table if it lies before the last kept slot and exists;
// else -1.
__device__ __forceinline__ int used_block(const KeepLists& lists, const Paging& paging,
                                          int64_t entry) {
  const int64_t batch = entry / paging.width;
  const int count = __ldg(lists.counts + batch);
  if (count <= 0 || count > lists.width) return -1;
  const int last = __ldg(lists.slots + batch * lists.width + count - 1);
  if (last < 0) return -1;
  if (entry - batch * paging.width > paging.block_size(static_cast<uint32_t>(last))) return -1;
  const int block = __ldg(paging.table + entry);
  return block < paging.blocks ? block : -1;
}

constexpr int kUserThreads = 1024;

// Adds up in `users` how often each block is used, so that a block in two places makes both batch
// rows bad, in whichever order the blocks of a move run. Counters are zeroed first, only those of
// used blocks: by a launch of its own, or by the only block of this one.
__global__ void __launch_bounds__(kUserThreads)
    compact_kv_users_kernel(const KeepLists lists, const Paging paging, bool zero, bool add) {
  const int64_t entries = lists.batch * paging.width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kUserThreads;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kUserThreads + threadIdx.x;
  if (zero) {
    for (int64_t entry = start; entry < entries; entry += step) {
      const int block = used_block(lists, paging, entry);
      if (block >= 0) paging.users[block] = 0;
    }
  }
  __syncthreads();
  if (!add) return;
  for (int64_t entry = start; entry < entries; entry += step) {
    const int block = used_block(lists, paging, entry);
    if (block >= 0) atomicAdd(paging.users + block, 1);
  }
}

}  // namespace erase_kernels
