// Kernels that are wrong, each in one way.
#include "probe.h"

namespace erase_kernels {
namespace {

__global__ void nothing_kernel(int32_t* out) { out[threadIdx.x] = 1; }

__global__ void barrier_kernel(int32_t, const int32_t*, int32_t*) {
  if (threadIdx.x < 17)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void two_barriers_kernel(int32_t, const int32_t*, int32_t*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void returned_kernel(int32_t, const int32_t*, int32_t* out) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void missing_lane_kernel(int32_t, const int32_t*, int32_t* out) {
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
}
__global__ void foreign_mask_kernel(int32_t, const int32_t*, int32_t* out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);
}
__global__ void inactive_source_kernel(int32_t, const int32_t*, int32_t* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 16);
}
__global__ void two_operations_kernel(int32_t, const int32_t*, int32_t* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  else
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 0);
}
__global__ void width_kernel(int32_t, const int32_t*, int32_t* out) {
  out[threadIdx.x] = __shfl_up_sync(kAllLanes, 1, 1, 24);
}
__global__ void far_kernel(int32_t, const int32_t*, int32_t* out) {
  out[threadIdx.x] = __shfl_down_sync(kAllLanes, 1, 32);
}
__global__ void misaligned_copy_kernel(int32_t, const int32_t* in, int32_t*) {
  ERASE_SHARED(int32_t, target, [8]);
  cp_async16(target + 1, in);
}
__global__ void misaligned_source_kernel(int32_t, const int32_t* in, int32_t*) {
  ERASE_SHARED(int32_t, target, [8]);
  cp_async<8>(target, in + 1);
}
__global__ void misaligned_row_kernel(int32_t, const int32_t*, int32_t*) {
  ERASE_SHARED(int32_t, tile, [256]);
  uint32_t words[4];
  ldmatrix_x4(words, tile + 4 * threadIdx.x + 2);
}
__global__ void too_much_shared_kernel(int32_t, const int32_t*, int32_t*) {
  ERASE_SHARED(char, much, [1025]);
  much[threadIdx.x] = 0;
}
__global__ void behind_dynamic_kernel(int32_t, const int32_t*, int32_t*) {
  if (threadIdx.x == 0) dynamic_shared<unsigned char>()[1024] = 0;
}
// Mistakes that only a sanitizer sees; `zero` is 0, which the compiler does not know.
__global__ void global_read_kernel(int32_t zero, const int32_t* in, int32_t* out) {
  out[threadIdx.x] = in[64 + zero];
}
__global__ void static_write_kernel(int32_t zero, const int32_t*, int32_t* out) {
  ERASE_SHARED(int32_t, place, [64]);
  int32_t* end = place + 64;
  end[zero] = 1;
  out[threadIdx.x] = place[threadIdx.x];
}
__global__ void overflow_kernel(int32_t zero, const int32_t*, int32_t* out) {
  const int32_t most = 0x7fffffff ^ zero, mine = static_cast<int32_t>(threadIdx.x);
  out[threadIdx.x] = most + mine;
}
__global__ void cast_kernel(int32_t zero, const int32_t*, int32_t* out) {
  out[threadIdx.x] = static_cast<int32_t>(4e9f + static_cast<float>(zero));
}

// Races that no order shows, for threads are not interrupted.
__global__ void plain_sum_kernel(int32_t, const int32_t* in, int32_t* out) {
  ERASE_SHARED(int32_t, sum, [1]);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  sum[0] += in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) out[0] = sum[0];
}
__global__ void plain_sum_of_blocks_kernel(int32_t, const int32_t* in, int32_t* out) {
  if (threadIdx.x == 0) out[0] += in[blockIdx.x];
}
__global__ void lanes_kernel(int32_t zero, const int32_t*, int32_t* out) {
  ERASE_SHARED(int32_t, place, [32]);
  const uint32_t lane = threadIdx.x;
  place[lane] = static_cast<int32_t>(lane);
  if (zero != 0) __syncwarp();
  out[lane] = place[lane ^ 1];
}
__global__ void half_a_warp_kernel(int32_t, const int32_t*, int32_t* out) {
  ERASE_SHARED(int32_t, place, [32]);
  const uint32_t lane = threadIdx.x;
  place[lane] = 1;
  __syncwarp(0xffffu << lane / 16 * 16);
  out[lane] = place[lane ^ 16];
}
__global__ void two_values_kernel(int32_t, const int32_t*, int32_t* out) {
  out[0] = static_cast<int32_t>(threadIdx.x % 2);
}
__global__ void one_value_kernel(int32_t, const int32_t*, int32_t* out) { out[0] = 1; }
__global__ void atomic_and_plain_kernel(int32_t, const int32_t*, int32_t* out) {
  if (threadIdx.x == 40) out[0] = 1;
  if (threadIdx.x == 0) atomicAdd(out, 1);
}
// Right: every kind of order there is.
__global__ void ordered_kernel(int32_t, const int32_t*, int32_t* out) {
  ERASE_SHARED(int32_t, last, [1]);
  ERASE_SHARED(int32_t, place, [64]);
  const uint32_t thread = threadIdx.x;
  place[thread] = 1;
  __syncwarp();
  const int32_t neighbour = place[thread ^ 1];
  __syncthreads();
  place[thread ^ 33] = neighbour;
  out[64 * blockIdx.x + thread + 1] = 1;
  __threadfence();
  __syncthreads();
  if (thread == 0) last[0] = atomicAdd(out, 1) == 1;
  __syncthreads();
  if (last[0]) {
    __threadfence();
    out[64 * (2 + blockIdx.x) + thread + 1] = out[64 * (1 - blockIdx.x) + thread + 1];
  }
}

using Kernel = void (*)(int32_t, const int32_t*, int32_t*);
constexpr size_t kMost = 99 << 10;
const struct {
  Kernel kernel;
  dim3 grid, block;
  size_t shared_bytes;
} kMistakes[] = {
    {barrier_kernel, 1, 64, 0},
    {two_barriers_kernel, 1, 64, 0},
    {missing_lane_kernel, 1, 32, 0},
    {foreign_mask_kernel, 1, 32, 0},
    {inactive_source_kernel, 1, 32, 0},
    {two_operations_kernel, 1, 32, 0},
    {width_kernel, 1, 32, 0},
    {far_kernel, 1, 32, 0},
    {misaligned_copy_kernel, 1, 32, 0},
    {misaligned_source_kernel, 1, 32, 0},
    {misaligned_row_kernel, 1, 32, 0},
    {too_much_shared_kernel, 1, 32, kMost - 1024},
    {returned_kernel, 1, 64, kMost + 1},
    {returned_kernel, dim3(1, 65536), 64, 0},
    {returned_kernel, 1, 1025, 0},
    {behind_dynamic_kernel, 1, 64, 1024},
    {global_read_kernel, 1, 64, 0},
    {static_write_kernel, 1, 64, 0},
    {overflow_kernel, 1, 64, 0},
    {cast_kernel, 1, 64, 0},
    {returned_kernel, 1, 64, kMost},
    {plain_sum_kernel, 1, 64, 0},
    {plain_sum_of_blocks_kernel, 3, 32, 0},
    {lanes_kernel, 1, 32, 0},
    {half_a_warp_kernel, 1, 32, 0},
    {atomic_and_plain_kernel, 1, 64, 0},
    {two_values_kernel, 1, 64, 0},
    {one_value_kernel, 2, 64, 0},
    {ordered_kernel, 2, 64, 0},
};

}  // namespace

PROBE(nothing) { launch(nothing_kernel, 1, 1024, 0, static_cast<int32_t*>(out)); }
PROBE(mistake) {
  const auto& mistake = kMistakes[options[0]];
  launch(mistake.kernel, mistake.grid, mistake.block, mistake.shared_bytes, options[1],
         static_cast<const int32_t*>(in), static_cast<int32_t*>(out));
}

}  // namespace erase_kernels
