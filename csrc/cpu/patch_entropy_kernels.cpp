#include "cpu/patch_entropy_kernels.h"

#include <immintrin.h>

#include "cpu/patch_entropy_gray.h"
#include "cpu/patch_entropy_histogram.h"

namespace erase_kernels {
namespace {

void planar_baseline(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  gray_planar(row.channel[0], row.channel[1], row.channel[2], count, gray);
}

void interleaved_baseline(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  gray_strided(row, count, gray);
}

#define AVX2 __attribute__((target(ERASE_KERNELS_AVX2)))
#define AVX2_INLINE AVX2 inline __attribute__((always_inline))

AVX2_INLINE void luma_avx2(__m256i red, __m256i green, __m256i blue, uint8_t* gray) {
  const __m256 r = _mm256_mul_ps(_mm256_set1_ps(kLumaRed), _mm256_cvtepi32_ps(red));
  const __m256 g = _mm256_mul_ps(_mm256_set1_ps(kLumaGreen), _mm256_cvtepi32_ps(green));
  const __m256 b = _mm256_mul_ps(_mm256_set1_ps(kLumaBlue), _mm256_cvtepi32_ps(blue));
  const __m256i level = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_add_ps(r, g), b));
  const __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128(level), _mm256_extracti128_si256(level, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(gray), _mm_packus_epi16(words, words));
}

AVX2_INLINE __m256i widen_avx2(const uint8_t* bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

AVX2 void planar_avx2(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  const uint8_t *red = row.channel[0], *green = row.channel[1], *blue = row.channel[2];
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    luma_avx2(widen_avx2(red + i), widen_avx2(green + i), widen_avx2(blue + i), gray + i);
  }
  gray_planar(red + i, green + i, blue + i, count - i, gray + i);
}

// Byte shuffle that takes one colour of four RGB pixels (12 bytes) to four 32-bit words.
AVX2_INLINE __m128i spread(int color) {
  const char z = -1;  // writes a zero
  const char c = static_cast<char>(color);
  return _mm_setr_epi8(c, z, z, z, c + 3, z, z, z, c + 6, z, z, z, c + 9, z, z, z);
}

AVX2 void interleaved_avx2(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  const uint8_t* rgb = row.channel[0];
  const __m256i red = _mm256_broadcastsi128_si256(spread(0));
  const __m256i green = _mm256_broadcastsi128_si256(spread(1));
  const __m256i blue = _mm256_broadcastsi128_si256(spread(2));
  int64_t i = 0;
  for (; i + 10 <= count; i += 8) {  // two loads of 16 bytes reach 4 bytes past the 8 pixels
    const auto* first = reinterpret_cast<const __m128i*>(rgb + 3 * i);
    const auto* second = reinterpret_cast<const __m128i*>(rgb + 3 * i + 12);
    const __m256i pixels = _mm256_set_m128i(_mm_loadu_si128(second), _mm_loadu_si128(first));
    luma_avx2(_mm256_shuffle_epi8(pixels, red), _mm256_shuffle_epi8(pixels, green),
              _mm256_shuffle_epi8(pixels, blue), gray + i);
  }
  gray_strided({{rgb + 3 * i, rgb + 3 * i + 1, rgb + 3 * i + 2}, 3, 3}, count - i, gray + i);
}

#define AVX512 __attribute__((target(ERASE_KERNELS_AVX512)))
#define AVX512_INLINE AVX512 inline __attribute__((always_inline))

AVX512_INLINE __m128i luma_avx512(__m512i red, __m512i green, __m512i blue) {
  const __m512 r = _mm512_mul_ps(_mm512_set1_ps(kLumaRed), _mm512_cvtepi32_ps(red));
  const __m512 g = _mm512_mul_ps(_mm512_set1_ps(kLumaGreen), _mm512_cvtepi32_ps(green));
  const __m512 b = _mm512_mul_ps(_mm512_set1_ps(kLumaBlue), _mm512_cvtepi32_ps(blue));
  return _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(_mm512_add_ps(_mm512_add_ps(r, g), b)));
}

AVX512_INLINE __m512i widen_avx512(const uint8_t* bytes) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

AVX512 void planar_avx512(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  const uint8_t *red = row.channel[0], *green = row.channel[1], *blue = row.channel[2];
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i level =
        luma_avx512(widen_avx512(red + i), widen_avx512(green + i), widen_avx512(blue + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(gray + i), level);
  }
  gray_planar(red + i, green + i, blue + i, count - i, gray + i);
}

AVX512 void interleaved_avx512(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {
  const uint8_t* rgb = row.channel[0];
  const __m512i red = _mm512_broadcast_i32x4(spread(0));
  const __m512i green = _mm512_broadcast_i32x4(spread(1));
  const __m512i blue = _mm512_broadcast_i32x4(spread(2));
  // 12 bytes (three words, four pixels) to each 128-bit lane, whose last word is not used.
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    constexpr __mmask64 kBytes = (uint64_t{1} << 48) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(kBytes, rgb + 3 * i);
    const __m512i words = _mm512_permutexvar_epi32(lanes, bytes);
    const __m128i level =
        luma_avx512(_mm512_shuffle_epi8(words, red), _mm512_shuffle_epi8(words, green),
                    _mm512_shuffle_epi8(words, blue));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(gray + i), level);
  }
  gray_strided({{rgb + 3 * i, rgb + 3 * i + 1, rgb + 3 * i + 2}, 3, 3}, count - i, gray + i);
}

// Defines the functions of one instruction set and the table of them.
#define DEFINE_KERNELS(NAME, TARGET)                                                             \
  TARGET void gray_##NAME(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {          \
    const bool color = row.channels == 3;                                                        \
    if (color && row.stride == 1) {                                                              \
      planar_##NAME(row, count, gray);                                                           \
    } else if (color && row.stride == 3 && row.channel[1] == row.channel[0] + 1 &&               \
               row.channel[2] == row.channel[0] + 2) {                                           \
      interleaved_##NAME(row, count, gray);                                                      \
    } else {                                                                                     \
      gray_strided(row, count, gray);                                                            \
    }                                                                                            \
  }                                                                                              \
  TARGET bool gray_f32_##NAME(const PixelRow<float>& row, const PixelStatistics& statistics,     \
                              int64_t count, uint8_t* gray) {                                    \
    return gray_from_pixels(row, statistics, count, gray);                                       \
  }                                                                                              \
  TARGET bool gray_f16_##NAME(const PixelRow<Half>& row, const PixelStatistics& statistics,      \
                              int64_t count, uint8_t* gray) {                                    \
    return gray_from_pixels(row, statistics, count, gray);                                       \
  }                                                                                              \
  TARGET bool gray_bf16_##NAME(const PixelRow<BFloat16>& row, const PixelStatistics& statistics, \
                               int64_t count, uint8_t* gray) {                                   \
    return gray_from_pixels(row, statistics, count, gray);                                       \
  }                                                                                              \
  TARGET void count_##NAME(const uint8_t* gray, int64_t rows, int64_t columns, int64_t stride,   \
                           uint32_t* counts) {                                                   \
    count_cell(gray, rows, columns, stride, counts);                                             \
  }                                                                                              \
  TARGET int64_t table_sum_##NAME(const uint8_t* gray, int64_t rows, int64_t columns,            \
                                  int64_t stride, const int64_t* table) {                        \
    return table_sum_of_cell(gray, rows, columns, stride, table);                                \
  }                                                                                              \
  constexpr PatchEntropyKernels kernels_##NAME = {gray_##NAME,     gray_f32_##NAME,              \
                                                  gray_f16_##NAME, gray_bf16_##NAME,             \
                                                  count_##NAME,    table_sum_##NAME};

DEFINE_KERNELS(baseline, )
DEFINE_KERNELS(avx2, AVX2)
DEFINE_KERNELS(avx512, AVX512)

#undef DEFINE_KERNELS

}  // namespace

const PatchEntropyKernels& patch_entropy_kernels(Clone clone) {
  switch (clone) {
    case Clone::kAvx512:
      return kernels_avx512;
    case Clone::kAvx2:
      return kernels_avx2;
    default:
      return kernels_baseline;
  }
}

}  // namespace erase_kernels
