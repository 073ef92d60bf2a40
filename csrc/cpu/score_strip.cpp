// Three clones of the score strip, one per instruction set, chosen once by what the CPU reports.
// The clones may differ in the last bits (fused or separate multiply-add, order of one final sum
// across the lanes): scores have an error budget, not a bit pattern. Each clone alone is
// deterministic.
#include "cpu/score_strip.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/clones.h"
#include "cpu/widen.h"

namespace erase_kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f;  // 355/512: n * kLn2High is exact for |n| < 2^15
constexpr float kLn2Low = -2.12194440054690583e-4f;  // ln 2 - kLn2High
constexpr float kRoundMagic =
    12582912.0f;                     // 1.5 * 2^23: adding it rounds to an integer in the low bits
constexpr float kExpFloor = -86.5f;  // 2^-125 * p(r) is still a normal float
constexpr int kMantissaBits = 23;
constexpr int32_t kExponentOne = 127 << kMantissaBits;  // bit pattern of 1.0f

// 1 / total; 0 for a row that sees no listed key; NaN where keys are seen but none has weight (all
// -inf).
void row_weights(const Strip& s, const float* totals, float* weights) {
  int32_t first_key = kNoKey;
  for (int64_t i = 0; i < s.keys.count; ++i) first_key = std::min(first_key, s.keys.list[i]);
  for (int64_t row = 0; row < s.rows; ++row) {
    const bool sees = s.limits[row] >= first_key;
    weights[row] = totals[row] != 0.0f ? 1.0f / totals[row] : (sees ? kInfinity - kInfinity : 0.0f);
  }
}

namespace baseline {
#define EK_TARGET
#define LANES 4
#define TILE_KEYS 4
typedef __m128 Vec;
static inline Vec ek_set(float x) { return _mm_set1_ps(x); }
static inline Vec ek_load(const float* p) { return _mm_loadu_ps(p); }
static inline void ek_store(float* p, Vec x) { _mm_storeu_ps(p, x); }
static inline Vec ek_fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline float ek_reduce(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
#include "cpu/score_strip_body.h"
#undef EK_TARGET
#undef LANES
#undef TILE_KEYS
}  // namespace baseline

namespace avx2 {
#define EK_TARGET __attribute__((target(ERASE_KERNELS_AVX2 ",fma")))
#define LANES 8
#define TILE_KEYS 4
typedef __m256 Vec;
EK_TARGET static inline Vec ek_set(float x) { return _mm256_set1_ps(x); }
EK_TARGET static inline Vec ek_load(const float* p) { return _mm256_loadu_ps(p); }
EK_TARGET static inline void ek_store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
EK_TARGET static inline Vec ek_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
EK_TARGET static inline float ek_reduce(Vec x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  return (half[0] + half[2]) + (half[1] + half[3]);
}
#include "cpu/score_strip_body.h"
#undef EK_TARGET
#undef LANES
#undef TILE_KEYS
}  // namespace avx2

namespace avx512 {
#define EK_TARGET __attribute__((target(ERASE_KERNELS_AVX512 ",fma")))
#define LANES 16
#define TILE_KEYS 8
typedef __m512 Vec;
EK_TARGET static inline Vec ek_set(float x) { return _mm512_set1_ps(x); }
EK_TARGET static inline Vec ek_load(const float* p) { return _mm512_loadu_ps(p); }
EK_TARGET static inline void ek_store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
EK_TARGET static inline Vec ek_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
EK_TARGET static inline float ek_reduce(Vec x) {
  float lanes[LANES];
  ek_store(lanes, x);
  const __m256 quarter = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + LANES / 2));
  const __m128 half =
      _mm_add_ps(_mm256_castps256_ps128(quarter), _mm256_extractf128_ps(quarter, 1));
  return (half[0] + half[2]) + (half[1] + half[3]);
}
#include "cpu/score_strip_body.h"
#undef EK_TARGET
#undef LANES
#undef TILE_KEYS
}  // namespace avx512

}  // namespace

StripFunction strip_function() {
  // FMA is a feature of its own, though every processor with AVX2 to date has it.
  if (!__builtin_cpu_supports("fma")) return baseline::run_strip;
  switch (active_clone()) {
    case Clone::kAvx512:
      return avx512::run_strip;
    case Clone::kAvx2:
      return avx2::run_strip;
    default:
      return baseline::run_strip;
  }
}

}  // namespace erase_kernels
