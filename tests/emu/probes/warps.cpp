// Operations of a warp, one lane each; lanes that are not in the mask do nothing.
#include "probe.h"

namespace erase_kernels {
namespace {

template <typename T>
__global__ void shuffle_kernel(const T* in, T* out, int kind, uint32_t mask, int distance,
                               int width) {
  const unsigned lane = threadIdx.x;
  if ((mask >> lane & 1u) == 0) return;
  const T value = in[lane];
  if (kind == 0) out[lane] = __shfl_sync(mask, value, distance, width);
  if (kind == 1) out[lane] = __shfl_up_sync(mask, value, distance, width);
  if (kind == 2) out[lane] = __shfl_down_sync(mask, value, distance, width);
  if (kind == 3) out[lane] = __shfl_xor_sync(mask, value, distance, width);
}

// Lane l reads from lane in[l].
__global__ void gather_kernel(const int32_t* in, int32_t* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = __shfl_sync(kAllLanes, 1000 + lane, in[lane]);
}

__global__ void vote_kernel(const int32_t* in, int32_t* out, uint32_t mask) {
  const unsigned lane = threadIdx.x;
  if ((mask >> lane & 1u) == 0) return;
  out[3 * lane] = static_cast<int32_t>(__ballot_sync(mask, in[lane]));
  out[3 * lane + 1] = __any_sync(mask, in[lane]);
  out[3 * lane + 2] = __all_sync(mask, in[lane]);
}

template <typename T>
__global__ void match_kernel(const T* in, uint32_t* out, uint32_t mask) {
  const unsigned lane = threadIdx.x;
  if (mask >> lane & 1u) out[lane] = __match_any_sync(mask, in[lane]);
}

template <typename T>
__global__ void reduce_kernel(const T* in, T* out, uint32_t mask) {
  const unsigned lane = threadIdx.x;
  if ((mask >> lane & 1u) == 0) return;
  const T value = in[lane];
  T* mine = out + 5 * lane;
  mine[0] = __reduce_add_sync(mask, value);
  mine[1] = __reduce_min_sync(mask, value);
  mine[2] = __reduce_max_sync(mask, value);
  mine[3] = __reduce_or_sync(mask, value);
  mine[4] = __reduce_and_sync(mask, value);
}

// Each quarter of the warp sums on its own, the later ones more often; then all together.
__global__ void quarters_kernel(const int32_t* in, int32_t* out) {
  const int lane = static_cast<int>(threadIdx.x), quarter = lane / 8;
  const uint32_t mask = 0xffu << (8 * quarter);
  int value = in[lane];
  for (int repeat = 0; repeat <= quarter; ++repeat)
    value = __shfl_xor_sync(mask, value, 1) + __shfl_xor_sync(mask, value, 4);
  __syncwarp();
  out[lane] = static_cast<int32_t>(__reduce_add_sync(kAllLanes, value));
}

}  // namespace

PROBE(shuffle) {
  const uint32_t mask = static_cast<uint32_t>(options[1]);
  if (options[4] == 8)
    launch(shuffle_kernel<double>, 1, 32, 0, static_cast<const double*>(in),
           static_cast<double*>(out), options[0], mask, options[2], options[3]);
  else
    launch(shuffle_kernel<int32_t>, 1, 32, 0, static_cast<const int32_t*>(in),
           static_cast<int32_t*>(out), options[0], mask, options[2], options[3]);
}
PROBE(gather) {
  launch(gather_kernel, 1, 32, 0, static_cast<const int32_t*>(in), static_cast<int32_t*>(out));
}
PROBE(vote) {
  launch(vote_kernel, 1, 32, 0, static_cast<const int32_t*>(in), static_cast<int32_t*>(out),
         static_cast<uint32_t>(options[0]));
}
PROBE(match) {
  const uint32_t mask = static_cast<uint32_t>(options[0]);
  if (options[1] == 8)
    launch(match_kernel<long long>, 1, 32, 0, static_cast<const long long*>(in),
           static_cast<uint32_t*>(out), mask);
  else
    launch(match_kernel<int32_t>, 1, 32, 0, static_cast<const int32_t*>(in),
           static_cast<uint32_t*>(out), mask);
}
PROBE(reduce) {
  const uint32_t mask = static_cast<uint32_t>(options[0]);
  if (options[1] != 0)
    launch(reduce_kernel<int32_t>, 1, 32, 0, static_cast<const int32_t*>(in),
           static_cast<int32_t*>(out), mask);
  else
    launch(reduce_kernel<uint32_t>, 1, 32, 0, static_cast<const uint32_t*>(in),
           static_cast<uint32_t*>(out), mask);
}
PROBE(quarters) {
  launch(quarters_kernel, 1, 32, 0, static_cast<const int32_t*>(in), static_cast<int32_t*>(out));
}

}  // namespace erase_kernels
