// csrc/cuda/device.cuh for the emulator. Copies into shared memory happen as late as they may, and
// spoil their target at once: a missing wait and a target still in use both show.
#pragma once

#include "emulator.h"

#define ERASE_SHARED(type, name, extents)                \
  static __attribute__((aligned(16))) type name extents; \
  static uint64_t name##_fresh_in = 0;                   \
  ::emulator::begin_shared(EMULATED_SITE, name##_fresh_in, (void*)&name, sizeof(name))

namespace erase_kernels {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(::emulator::dynamic_shared());
}

// Addresses are offsets into the dynamic shared memory.
inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(place) -
                               static_cast<const unsigned char*>(::emulator::dynamic_shared()));
}
void emulated_increment(::emulator::Site site, uint32_t address);

// Queues of this thread's copies; kept by the emulator per thread.
void emulated_copy(void* shared, const void* global, int bytes, bool valid);
void emulated_commit();
void emulated_wait(int groups);

inline void cp_async16(void* shared, const void* global, bool valid = true) {
  emulated_copy(shared, global, 16, valid);
}
template <int kBytes>
void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8, "16 bytes: cp_async16");
  emulated_copy(shared, global, kBytes, valid);
}
inline void cp_async_commit() { emulated_commit(); }
template <int kGroups>
void cp_async_wait() {
  emulated_wait(kGroups);
}

void emulated_ldmatrix(::emulator::Site site, uint32_t (&out)[4], const void* row);
void emulated_mma(::emulator::Site site, float (&c)[4], const uint32_t (&a)[4],
                  const uint32_t (&b)[2], float (*widen)(uint16_t));

inline float widen_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0x1fu) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
inline float emulated_widen_bfloat16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
inline float exp2_approximate(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
}

}  // namespace erase_kernels

#define ldmatrix_x4(...) emulated_ldmatrix(EMULATED_SITE, __VA_ARGS__)
#define mma_m16n8k16_half(...) emulated_mma(EMULATED_SITE, __VA_ARGS__, widen_half)
#define mma_m16n8k16_bfloat16(...) emulated_mma(EMULATED_SITE, __VA_ARGS__, emulated_widen_bfloat16)
#define shared_increment(address) emulated_increment(EMULATED_SITE, address)
