#include "cpu/patch_entropy_kernels.h"

#include <immintrin.h>

#include "cpu/patch_entropy_gray.h"
#include "cpu/patch_entropy_histogram.h"

namespace erase_kernels {
namespace {

void gray_interleaved_baseline(const uint8_t* rgb, int64_t count, uint8_t* gray) {
  for (int64_t i = 0; i < count; ++i) gray[i] = luma(rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]);
}

void gray_interleaved_avx2(const uint8_t* rgb, int64_t count, uint8_t* gray) {
  gray_interleaved_baseline(rgb, count, gray);
}
void gray_interleaved_avx512(const uint8_t* rgb, int64_t count, uint8_t* gray) {
  gray_interleaved_baseline(rgb, count, gray);
}

// Defines the functions of one instruction set and the table of them.
#define DEFINE_KERNELS(NAME, TARGET)                                                               \
  TARGET void gray_##NAME(const PixelRow<uint8_t>& row, int64_t count, uint8_t* gray) {            \
    const bool color = row.channels == 3;                                                          \
    if (color && row.stride == 1) {                                                                \
      gray_planar(row.channel[0], row.channel[1], row.channel[2], count, gray);                    \
    } else if (color && row.stride == 3 && row.channel[1] == row.channel[0] + 1 &&                 \
               row.channel[2] == row.channel[0] + 2) {                                             \
      gray_interleaved_##NAME(row.channel[0], count, gray);                                        \
    } else {                                                                                       \
      gray_strided(row, count, gray);                                                              \
    }                                                                                              \
  }                                                                                                \
  TARGET bool gray_f32_##NAME(const PixelRow<float>& row, const PixelStatistics& statistics,       \
                              int64_t count, uint8_t* gray) {                                      \
    return gray_from_pixels(row, statistics, count, gray);                                         \
  }                                                                                                \
  TARGET bool gray_f16_##NAME(const PixelRow<Half>& row, const PixelStatistics& statistics,        \
                              int64_t count, uint8_t* gray) {                                      \
    return gray_from_pixels(row, statistics, count, gray);                                         \
  }                                                                                                \
  TARGET bool gray_bf16_##NAME(const PixelRow<BFloat16>& row, const PixelStatistics& statistics,   \
                               int64_t count, uint8_t* gray) {                                     \
    return gray_from_pixels(row, statistics, count, gray);                                         \
  }                                                                                                \
  TARGET void count_##NAME(const uint8_t* gray, int64_t rows, int64_t columns, int64_t stride,     \
                           uint32_t* counts) {                                                     \
    count_cell(gray, rows, columns, stride, counts);                                               \
  }                                                                                                \
  TARGET int64_t table_sum_##NAME(const uint8_t* gray, int64_t rows, int64_t columns,              \
                                  int64_t stride, const int64_t* table) {                          \
    return table_sum_of_cell(gray, rows, columns, stride, table);                                  \
  }                                                                                                \
  constexpr PatchEntropyKernels kernels_##NAME = {gray_##NAME,      gray_f32_##NAME,               \
                                                  gray_f16_##NAME,  gray_bf16_##NAME,              \
                                                  count_##NAME,     table_sum_##NAME};

DEFINE_KERNELS(baseline, )
DEFINE_KERNELS(avx2, __attribute__((target(ERASE_KERNELS_AVX2))))
DEFINE_KERNELS(avx512, __attribute__((target(ERASE_KERNELS_AVX512))))

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
