// Entropies of the cells of a processor's output; patch_entropy_count.cuh says how levels are
// counted.
//
// Parallelism: one block per tile of up to 8 consecutive cells. Where its lines begin is worked out
// once, by a thread per line, and kept in shared memory, so that any loops cost the same. A thread
// keeps its quad of the line, four values per channel, and reads one line ahead of counting.
// Considered: index arithmetic per quad (a quarter of the instructions), copies through shared
// memory (recovery needs each value in one thread only).
#pragma once

#include "cuda/patch_entropy_count.cuh"
#include "cuda/patch_entropy_pixels.h"
#include "cuda/status.h"

namespace erase_kernels {

enum class PixelType : int { kFloat, kHalf, kBFloat16 };

constexpr uint32_t kTileLines = 256;  // whose places are kept at a time

struct PixelLine {
  int64_t offset;   // elements from the tensor's start
  uint32_t base;    // of its cell's counters, see counter_base
  uint32_t unused;  // for one load of 16 bytes
};

// A thread's quad of one line, or of two for half as large types.
template <PixelType kType>
struct Quads {
  static constexpr uint32_t kLines = kType == PixelType::kFloat ? 1 : 2;
  static constexpr uint32_t kWords = kType == PixelType::kFloat ? 4 : 2;
  using Element = std::conditional_t<kType == PixelType::kFloat, uint32_t, uint16_t>;
  uint32_t word[kLines][kPixelChannels][kWords];
  uint32_t base[kLines];
};

template <PixelType kType>
__device__ __forceinline__ float widen(const uint32_t* word, uint32_t i) {
  if constexpr (kType == PixelType::kFloat) {
    return __uint_as_float(word[i]);
  } else {
    const uint16_t bits = static_cast<uint16_t>(word[i / 2] >> 16 * (i % 2));
    return kType == PixelType::kHalf ? widen_half(bits) : widen_bfloat16(bits);
  }
}

// The gray level that a value stands for; `bad` if it is further from it than is accepted, or NaN.
__device__ __forceinline__ float recover(float value, float mean, float std, float scale,
                                         float tolerance, bool& bad) {
  const float exact = __fmul_rn(__fadd_rn(__fmul_rn(value, std), mean), scale);
  const float above = fminf(fmaxf(__fadd_rn(exact, 0.5f), 0.0f), kMaxLevel);  // NaN is 0
  const float level = __fsub_rn(__uint_as_float(floor_bits(above)), kUnitFloat);
  bad |= !(fabsf(__fsub_rn(exact, level)) <= tolerance);
  return level;
}

// The quad's values of one channel.
template <PixelType kType, bool kVector>
__device__ __forceinline__ void load_quad(uint32_t* word, const PixelCells& cells, int64_t offset,
                                          uint32_t valid) {
  using Element = typename Quads<kType>::Element;
  const Element* place = static_cast<const Element*>(cells.data) + offset;
  if constexpr (kVector && kType == PixelType::kFloat) {
    const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(place));
    word[0] = loaded.x;
    word[1] = loaded.y;
    word[2] = loaded.z;
    word[3] = loaded.w;
  } else if constexpr (kVector) {
    const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(place));
    word[0] = loaded.x;
    word[1] = loaded.y;
  } else {
    for (uint32_t k = 0; k < Quads<kType>::kWords; ++k) word[k] = 0;
    constexpr uint32_t kPerWord = kQuad / Quads<kType>::kWords;
#pragma unroll
    for (uint32_t i = 0; i < kQuad; ++i)
      if (i < valid)
        word[i / kPerWord] |= static_cast<uint32_t>(__ldg(place + i * cells.pixel_strides[2]))
                              << 16 * (i % kPerWord);
  }
}

// Reads line `line` and, for small types, the thread's next one, of `count`; `shift` is the quad's
// place in its line.
template <PixelType kType, bool kVector>
__device__ __forceinline__ void read(Quads<kType>& quads, const PixelCells& cells,
                                     const PixelLine* lines, uint32_t line, uint32_t count,
                                     int64_t shift, uint32_t valid) {
#pragma unroll
  for (uint32_t i = 0; i < Quads<kType>::kLines; ++i) {
    const uint32_t own = line + i * cells.spread.lines_per_round;
    if (own >= count) return;
    const PixelLine found = lines[own];
    quads.base[i] = found.base;
    const int64_t offset = found.offset + shift;
#pragma unroll
    for (int c = 0; c < kPixelChannels; ++c)
      if (c == 0 || cells.channels > 1)
        load_quad<kType, kVector>(quads.word[i][c], cells, offset + c * cells.channel_stride,
                                  valid);
  }
}

template <PixelType kType, bool kVector>
__device__ __forceinline__ void count(const Quads<kType>& quads, const PixelCells& cells,
                                      uint32_t line, uint32_t lines, uint32_t valid, bool& bad) {
#pragma unroll
  for (uint32_t i = 0; i < Quads<kType>::kLines; ++i) {
    if (line + i * cells.spread.lines_per_round >= lines) return;
#pragma unroll
    for (uint32_t k = 0; k < kQuad; ++k) {
      if (!kVector && k >= valid) break;
      float level[kPixelChannels];
#pragma unroll
      for (int c = 0; c < kPixelChannels; ++c)
        if (c == 0 || cells.channels > 1)
          level[c] = recover(widen<kType>(quads.word[i][c], k), cells.mean[c], cells.std[c],
                             cells.scale, cells.tolerance, bad);
      const float gray = cells.channels > 1 ? luma(level[0], level[1], level[2]) : level[0];
      count_bits(quads.base[i], floor_bits(gray));
    }
  }
}

// One quad of `count` lines, from the thread's first line on.
template <PixelType kType, bool kVector>
__device__ __forceinline__ void count_lines(const PixelCells& cells, const PixelLine* lines,
                                            uint32_t line, uint32_t count, uint32_t quad,
                                            bool& bad) {
  const uint32_t step = Quads<kType>::kLines * cells.spread.lines_per_round;
  const int64_t shift = int64_t{quad} * kQuad * cells.pixel_strides[2];
  const uint32_t valid = min(kQuad, cells.columns - quad * kQuad);
  Quads<kType> one, other;
  read<kType, kVector>(one, cells, lines, line, count, shift, valid);
  while (line < count) {
    read<kType, kVector>(other, cells, lines, line + step, count, shift, valid);
    erase_kernels::count<kType, kVector>(one, cells, line, count, valid, bad);
    line += step;
    if (line >= count) break;
    read<kType, kVector>(one, cells, lines, line + step, count, shift, valid);
    erase_kernels::count<kType, kVector>(other, cells, line, count, valid, bad);
    line += step;
  }
}

// Line `line` of the tile whose first cell is `first_cell`.
__device__ __forceinline__ PixelLine place_of(const PixelCells& cells, uint32_t first_cell,
                                              uint32_t line, uint32_t counters) {
  const uint32_t local = line / cells.lines, row = line % cells.lines;
  const uint32_t cell = first_cell + local, run = cell / cells.cell_sizes[1];
  const uint32_t outer = run / cells.cell_sizes[0];
  const uint32_t segment = row / cells.segment_rows;
  const int64_t offset =
      outer * cells.cell_strides[0] + run % cells.cell_sizes[0] * cells.cell_strides[1] +
      cell % cells.cell_sizes[1] * cells.cell_strides[2] + segment * cells.pixel_strides[0] +
      row % cells.segment_rows * cells.pixel_strides[1];
  return {offset, counter_base(counters, local), 0};
}

template <PixelType kType, bool kVector>
__global__ void __launch_bounds__(kMostThreads, 4)
    patch_entropy_from_pixels_kernel(const __grid_constant__ PixelCells cells,
                                     const int64_t* __restrict__ table, float* __restrict__ entropy,
                                     int32_t* __restrict__ status) {
  ERASE_SHARED(PixelLine, lines, [kTileLines]);
  uint32_t* counters = dynamic_shared<uint32_t>();
  const uint32_t first_cell = blockIdx.x * cells.tile_cells;
  const uint32_t here = min(cells.tile_cells, cells.cells - first_cell);
  clear_counters(counters, here);

  const uint32_t units = cells.spread.units, thread = threadIdx.x;
  const uint32_t own =
      units <= blockDim.x ? static_cast<uint32_t>(thread * cells.spread.reciprocal >> 32) : 0;
  const uint32_t all = here * cells.lines;
  bool bad = false;
  for (uint32_t first = 0; first < all; first += kTileLines) {
    const uint32_t count = min(kTileLines, all - first);
    __syncthreads();  // nobody counts lines of the turn before
    for (uint32_t i = thread; i < count; i += blockDim.x)
      lines[i] = place_of(cells, first_cell, first + i, shared_address(counters));
    __syncthreads();
    const uint32_t line = own < cells.spread.lines_per_round ? own : count;
    for (uint32_t quad = thread - own * units; quad < units; quad += blockDim.x)
      count_lines<kType, kVector>(cells, lines, line, count, quad, bad);
  }
  __syncthreads();
  store_entropies(counters, here, table, cells.lines * cells.columns, entropy + first_cell);
  if (bad) set_status(status, kStatusPixels);
}

}  // namespace erase_kernels
