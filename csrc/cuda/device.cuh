// What kernel bodies may use beyond CUDA's own intrinsics: everything that the emulator of
// tests/emu has to do in its own way. The only place in kernel code that asks which of the two it
// is compiled for. Small functions, one instruction each.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef ERASE_KERNELS_EMULATOR
#include "emulated_device.h"
#else

// `ERASE_SHARED(float, tile, [4][33]);` at the top of a function: static shared memory of a block,
// aligned for copies of 16 bytes.
#define ERASE_SHARED(type, name, extents) __shared__ __align__(16) type name extents

namespace erase_kernels {

// The shared memory whose size the launch gives; 16-byte aligned.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char erase_dynamic_shared[];
  return reinterpret_cast<T*>(erase_dynamic_shared);
}

__device__ __forceinline__ uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

// Adds 1 to the counter at a shared_address. The address is a plain number, so that a sum of loop
// constants may stand in one register; a pointer is taken apart by the compiler.
__device__ __forceinline__ void shared_increment(uint32_t address) {
  asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(address) : "memory");
}

// Starts a copy of 16 bytes, both sides aligned to it, into shared memory, past the first-level
// cache; zeros instead if not `valid` (then `global` is not read, but must be a legal address).
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// The same for 4 or 8 bytes.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8, "16 bytes: cp_async16");
  const int bytes = valid ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "n"(kBytes), "r"(bytes)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kGroups of this thread's latest groups are under way. Other threads see
// what arrived after a barrier.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lanes 8 i to 8 i + 7 give the addresses of matrix i's rows
// (16 bytes, aligned); lane l gets elements 2 (l % 4) and the next one of row l / 4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b on tensor cores, float32 sums; a 16x16, b 16x8, c 16x8, spread over the warp as PTX says
// for mma.m16n8k16.
__device__ __forceinline__ void mma_m16n8k16_half(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_bfloat16(float (&c)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 2^x, about two units in the last place; subnormal results are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float widen_half(uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

}  // namespace erase_kernels
#endif

namespace erase_kernels {

constexpr int kWarpThreads = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ float widen_bfloat16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Adds bits to the device's status word, which says that data was bad; see status.h.
__device__ __forceinline__ void set_status(int32_t* word, int32_t bits) { atomicOr(word, bits); }

}  // namespace erase_kernels
