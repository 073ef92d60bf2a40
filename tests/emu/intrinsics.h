// CUDA's vector types and the functions of one thread alone, for the CPU; part of emulator.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "races.h"

// Accesses that are reported otherwise.
#ifdef __SANITIZE_THREAD__
#define EMULATED_NOT_WATCHED __attribute__((no_sanitize_thread, noinline))
#else
#define EMULATED_NOT_WATCHED
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define EMULATED_VECTORS(name, scalar)                                 \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct alignas(4 * sizeof(scalar)) name##4 { scalar x, y, z, w; };   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(uint, unsigned)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(ushort, unsigned short)
EMULATED_VECTORS(uchar, unsigned char)
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

namespace emulator {

template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "other sizes");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

template <typename T, typename Change>
EMULATED_NOT_WATCHED T atomic(T* place, Change change) {
  races_access(place, sizeof(T), Access::kAtomic);
  const T old = *place;
  *place = change(old);
  return old;
}

}  // namespace emulator

inline void __threadfence() { emulator::races_fence(); }
inline void __threadfence_block() {}

// Sums of integers wrap, as on the device.
template <typename T, typename U>
T atomicAdd(T* place, U value) {
  return emulator::atomic(place, [=](T old) {
    if constexpr (std::is_integral<T>::value) {
      using Bits = std::make_unsigned_t<T>;
      return static_cast<T>(
          static_cast<Bits>(static_cast<Bits>(old) + static_cast<Bits>(static_cast<T>(value))));
    } else {
      return static_cast<T>(old + static_cast<T>(value));
    }
  });
}
template <typename T, typename U>
T atomicSub(T* place, U value) {
  using Bits = std::make_unsigned_t<T>;
  return atomicAdd(place,
                   static_cast<T>(static_cast<Bits>(0) - static_cast<Bits>(static_cast<T>(value))));
}
template <typename T, typename U>
T atomicOr(T* place, U value) {
  return emulator::atomic(place,
                          [=](T old) { return static_cast<T>(old | static_cast<T>(value)); });
}
template <typename T, typename U>
T atomicAnd(T* place, U value) {
  return emulator::atomic(place,
                          [=](T old) { return static_cast<T>(old & static_cast<T>(value)); });
}
template <typename T, typename U>
T atomicMax(T* place, U value) {
  return emulator::atomic(
      place, [=](T old) { return old > static_cast<T>(value) ? old : static_cast<T>(value); });
}
template <typename T, typename U>
T atomicMin(T* place, U value) {
  return emulator::atomic(
      place, [=](T old) { return old < static_cast<T>(value) ? old : static_cast<T>(value); });
}
template <typename T, typename U>
T atomicExch(T* place, U value) {
  return emulator::atomic(place, [=](T) { return static_cast<T>(value); });
}
template <typename T, typename U>
T atomicCAS(T* place, U expected, U value) {
  return emulator::atomic(
      place, [=](T old) { return old == static_cast<T>(expected) ? static_cast<T>(value) : old; });
}

template <typename T>
T __ldg(const T* place) {
  return *place;
}
template <typename T>
T __ldcs(const T* place) {
  return *place;
}
template <typename T>
void __stcs(T* place, T value) {
  *place = value;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1u) << (31 - bit);
  return result;
}
// PTX prmt in its default mode.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7u))) & 0xffu;
    if (nibble & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31u));
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
inline int __float_as_int(float value) { return emulator::bits_as<int>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bits_as<unsigned>(value); }
inline float __int_as_float(int value) { return emulator::bits_as<float>(value); }
inline float __uint_as_float(unsigned value) { return emulator::bits_as<float>(value); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
// The sum in double, its own error as the sign that says whether it lies above the exact one.
inline float __fadd_rd(float x, float y) {
  const double a = x, b = y, sum = a + b, kept = sum - a;
  const double error = (a - (sum - kept)) + (b - kept);
  const float result = static_cast<float>(sum);
  const bool above = result > sum || (result == sum && error < 0.0);
  return above ? std::nextafterf(result, -HUGE_VALF) : result;
}
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
inline float __ll2float_rn(long long value) { return static_cast<float>(value); }
// Out of range and NaN as the hardware has it: the nearest integer, and 0.
inline int __float2int_rd(float value) {
  if (std::isnan(value)) return 0;
  const double floor = std::floor(static_cast<double>(value));
  if (floor >= 2147483647.0) return 2147483647;
  return floor <= -2147483648.0 ? -2147483647 - 1 : static_cast<int>(floor);
}
inline unsigned __float2uint_rz(float value) {
  if (std::isnan(value) || value <= 0.0f) return 0;
  return value >= 4294967295.0f ? 0xffffffffu : static_cast<unsigned>(value);
}

template <typename T>
T min(T x, T y) {
  return y < x ? y : x;
}
template <typename T>
T max(T x, T y) {
  return x < y ? y : x;
}
using std::exp2f;
using std::fmaxf;
using std::fminf;
