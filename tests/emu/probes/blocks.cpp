// Order, shared memory, barriers and asynchronous copies of whole blocks.
#include "probe.h"

namespace erase_kernels {
namespace {

// When each thread of each block begins, and when its warp goes on after a shuffle.
__global__ void trace_kernel(int32_t* out, int32_t* clock) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int32_t* mine = out + 2 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
  mine[0] = atomicAdd(clock, 1);
  __syncwarp();
  mine[1] = atomicAdd(clock, 1);
}

template <int kCount>
__global__ void poison_kernel(const int32_t*, uint32_t* out) {
  ERASE_SHARED(uint32_t, still, [kCount]);
  uint32_t* dynamic = dynamic_shared<uint32_t>();
  const unsigned thread = threadIdx.x;
  out[blockIdx.x * 64 + thread] = still[thread];
  out[blockIdx.x * 64 + 32 + thread] = dynamic[thread];
  still[thread] = dynamic[thread] = 7;
}

// Warp totals through shared memory; without the barrier thread 0 may read before they are there.
template <bool kBarrier>
__global__ void sum_kernel(const uint32_t* in, uint32_t* out, uint32_t count) {
  ERASE_SHARED(uint32_t, totals, [8]);
  uint32_t value = 0;
  for (uint32_t i = threadIdx.x; i < count; i += 256) value += in[i];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = value;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t sum = 0;
    for (const uint32_t total : totals) sum += total;
    *out = sum;
  }
}

// Warp 0 needs three warp operations before it writes, warp 1 one before it reads.
__global__ void behind_kernel(int32_t* out) {
  ERASE_SHARED(int32_t, place, [1]);
  int32_t value = 1;
  const unsigned warp = threadIdx.x / 32;
  for (unsigned i = 0; i < (warp == 0 ? 1u : 3u); ++i)
    value += __shfl_xor_sync(kAllLanes, value, 1);
  if (threadIdx.x == 0) place[0] = value;
  if (threadIdx.x == 32) *out = place[0];
}

__global__ void block_votes_kernel(const int32_t* in, int32_t* out) {
  const int32_t mine = in[threadIdx.x];
  out[3 * threadIdx.x] = __syncthreads_count(mine);
  out[3 * threadIdx.x + 1] = __syncthreads_or(mine);
  out[3 * threadIdx.x + 2] = __syncthreads_and(mine);
}

// Thread 0 copies `in` piece by piece and writes down what a shared word holds after each step.
__global__ void copies_kernel(const uint32_t* in, uint32_t* out) {
  ERASE_SHARED(uint32_t, target, [12]);
  if (threadIdx.x != 0) return;
  for (uint32_t& word : target) word = 1;
  const auto note = [&] {
    for (const uint32_t word : target) *out++ = word;
  };
  cp_async16(target, in);
  note();
  cp_async_commit();
  cp_async<8>(target + 4, in + 4);
  cp_async<4>(target + 6, in + 6);
  cp_async_commit();
  note();
  cp_async16(target + 8, in, false);
  cp_async_wait<1>();
  note();
  cp_async_wait<0>();
  note();
  cp_async_commit();
  cp_async_wait<0>();
  note();
}

// Each thread of two brings one half; `kWaits`: whether thread 1 waits for its own copy.
template <bool kWaits>
__global__ void halves_kernel(const uint32_t* in, uint32_t* out) {
  ERASE_SHARED(uint32_t, target, [8]);
  if (threadIdx.x < 2) {
    cp_async16(target + 4 * threadIdx.x, in + 4 * threadIdx.x);
    cp_async_commit();
    if (kWaits || threadIdx.x == 0) cp_async_wait<0>();
  }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < 8; ++i) out[i] = target[i];
}

}  // namespace

PROBE(trace) {
  const dim3 grid(options[0], options[1], options[2]), block(options[3], options[4], options[5]);
  int32_t clock = 0;
  launch(trace_kernel, grid, block, 0, static_cast<int32_t*>(out), &clock);
}
PROBE(poison) {
  launch(poison_kernel<32>, 3, 32, 32 * sizeof(uint32_t), static_cast<const int32_t*>(in),
         static_cast<uint32_t*>(out));
}
PROBE(sum) {
  const auto kernel = options[0] != 0 ? sum_kernel<true> : sum_kernel<false>;
  launch(kernel, 1, 256, 0, static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out),
         static_cast<uint32_t>(options[1]));
}
PROBE(behind) { launch(behind_kernel, 1, 64, 0, static_cast<int32_t*>(out)); }
PROBE(block_votes) {
  launch(block_votes_kernel, 1, options[0], 0, static_cast<const int32_t*>(in),
         static_cast<int32_t*>(out));
}
PROBE(copies) {
  launch(copies_kernel, 1, 32, 0, static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out));
}
PROBE(halves) {
  const auto kernel = options[0] != 0 ? halves_kernel<true> : halves_kernel<false>;
  launch(kernel, 1, 32, 0, static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out));
}

}  // namespace erase_kernels
