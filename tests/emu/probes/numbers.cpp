// What one thread computes alone, and atomics.
#include "probe.h"

namespace erase_kernels {
namespace {

struct Words {
  uint32_t x, y, z;
};

__global__ void integers_kernel(const Words* in, uint32_t* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const Words w = in[i];
    uint32_t* mine = out + 8 * i;
    mine[0] = __byte_perm(w.x, w.y, w.z);
    mine[1] = __funnelshift_r(w.x, w.y, w.z);
    mine[2] = __umulhi(w.x, w.y);
    mine[3] = static_cast<uint32_t>(__popc(w.x));
    mine[4] = static_cast<uint32_t>(__clz(static_cast<int>(w.x)));
    mine[5] = static_cast<uint32_t>(__ffs(static_cast<int>(w.x)));
    mine[6] = __brev(w.x);
    mine[7] = static_cast<uint32_t>(__popcll(static_cast<unsigned long long>(w.x) << 32 | w.y));
  }
}

__global__ void floats_kernel(const float* in, int32_t* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    out[3 * i] = __float2int_rd(in[i]);
    out[3 * i + 1] = static_cast<int32_t>(__float2uint_rz(in[i]));
    out[3 * i + 2] = __float_as_int(exp2_approximate(in[i]));
  }
}

__global__ void widen_kernel(float* out) {
  const uint32_t bits = blockIdx.x * blockDim.x + threadIdx.x;
  out[2 * bits] = widen_half(static_cast<uint16_t>(bits));
  out[2 * bits + 1] = widen_bfloat16(static_cast<uint16_t>(bits));
}

// Every thread of every block on the same eight places; the sum of what was there before, too.
__global__ void atomics_kernel(const int32_t* in, int32_t* out, unsigned long long* wide,
                               float* sum) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t value = in[thread];
  const int32_t before = atomicAdd(&out[0], value);
  atomicSub(&out[1], value);
  atomicMin(&out[2], value);
  atomicMax(&out[3], value);
  atomicOr(&out[4], value);
  atomicAnd(&out[5], value);
  atomicAdd(wide, 0x100000000ull + static_cast<unsigned>(before));
  atomicAdd(sum, 1.0f);
  if (atomicCAS(&out[6], 0, static_cast<int32_t>(thread) + 1) == 0) atomicAdd(&out[7], 1);
  const int32_t last = atomicExch(&out[8], static_cast<int32_t>(thread));
  out[9 + thread] = last;
}

}  // namespace

PROBE(integers) {
  launch(integers_kernel, 1, 64, 0, static_cast<const Words*>(in), static_cast<uint32_t*>(out),
         options[0]);
}
PROBE(floats) {
  launch(floats_kernel, 1, 64, 0, static_cast<const float*>(in), static_cast<int32_t*>(out),
         options[0]);
}
PROBE(widen) { launch(widen_kernel, 64, 1024, 0, static_cast<float*>(out)); }
// out: 64 bits, a float, 32 bits unused, then what the kernel's `out` is.
PROBE(atomics) {
  int32_t* words = static_cast<int32_t*>(out);
  launch(atomics_kernel, 3, 96, 0, static_cast<const int32_t*>(in), words + 4,
         reinterpret_cast<unsigned long long*>(words), reinterpret_cast<float*>(words + 2));
}

}  // namespace erase_kernels
