// Entropies of the patches of images; patch_entropy_count.cuh says how pixels are counted.
//
// Parallelism: one block per tile, up to 8 cells side by side. A thread keeps its columns and goes
// down the rows, so that its cells and their counters are worked out once; while it counts sixteen
// pixels, the loads of its next sixteen are under way, and four to eight blocks share a
// multiprocessor. Considered: a persistent grid (most launches are two waves of blocks as it is),
// copies through shared memory (the bytes would be read twice from there), one warp per cell (rows
// of 28 bytes are no whole 16-byte loads).
#pragma once

#include "cuda/patch_entropy_count.cuh"
#include "cuda/patch_entropy_images.h"

namespace erase_kernels {

// One tile as a thread sees it: its units of every lines_per_round-th row.
struct ImageTile {
  int64_t channel_stride, column_stride;
  int64_t line_stride;       // from one row of the thread to its next
  uint32_t rows;             // of pixels
  uint32_t lines_per_round;  // rows from one of the thread's to the next
  uint32_t channels, valid;  // channels and pixels of a unit; Access::kAny only
};

// Where a thread reads next.
struct Cursor {
  const uint8_t* place;
  uint32_t row;
};

// The pixels of a thread's round: four words of each channel, or one for Access::kAny. Interleaved
// pixels keep their order: word 3 i + k of a round is word k of its unit i.
template <Access kAccess>
struct Round {
  static constexpr int kWords = kAccess == Access::kAny ? 1 : 4;  // of four pixels
  static constexpr int kChannels = kAccess == Access::kGray ? 1 : 3;
  static constexpr int kLines = kAccess == Access::kAny || kIsWide<kAccess> ? 1 : 4;
  uint32_t word[kChannels * kWords];
};

__device__ __forceinline__ void load_wide(uint32_t* word, const uint8_t* place) {
  const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(place));
  word[0] = loaded.x;
  word[1] = loaded.y;
  word[2] = loaded.z;
  word[3] = loaded.w;
}

__device__ __forceinline__ uint32_t load_word(const uint8_t* place) {
  return __ldg(reinterpret_cast<const uint32_t*>(place));
}

__device__ __forceinline__ uint32_t load_bytes(const uint8_t* place, int64_t stride,
                                               uint32_t valid) {
  uint32_t word = 0;
#pragma unroll
  for (uint32_t i = 0; i < kQuad; ++i)
    if (i < valid) word |= static_cast<uint32_t>(__ldg(place + i * stride)) << 8 * i;
  return word;
}

template <Access kAccess>
__device__ __forceinline__ void load_unit(Round<kAccess>& round, int i, const uint8_t* place,
                                          const ImageTile& tile) {
  if constexpr (kAccess == Access::kTriplesWide) {
    for (int k = 0; k < 3; ++k) load_wide(round.word + 4 * k, place + 16 * k);
  } else if constexpr (kAccess == Access::kTriples) {
    for (int k = 0; k < 3; ++k) round.word[3 * i + k] = load_word(place + 4 * k);
  } else {
#pragma unroll
    for (int c = 0; c < Round<kAccess>::kChannels; ++c) {
      if constexpr (kAccess == Access::kPlanesWide)
        load_wide(round.word + 4 * c, place);
      else if constexpr (kAccess == Access::kAny)
        round.word[c] = load_bytes(place, tile.column_stride, tile.valid);
      else
        round.word[4 * c + i] = load_word(place);
      if (kAccess == Access::kAny && tile.channels == 1) return;
      place += tile.channel_stride;
    }
  }
}

// Reads the next round, as far as the tile has rows.
template <Access kAccess>
__device__ __forceinline__ void read(Round<kAccess>& round, const ImageTile& tile, Cursor& next) {
#pragma unroll
  for (int i = 0; i < Round<kAccess>::kLines; ++i) {
    if (next.row < tile.rows) load_unit(round, i, next.place, tile);
    next.row += tile.lines_per_round;
    next.place += tile.line_stride;
  }
}

// Counts pixel `i` of the round's quad `quad`.
template <Access kAccess>
__device__ __forceinline__ void count_pixel(const Round<kAccess>& round, uint32_t quad, uint32_t i,
                                            uint32_t base) {
  constexpr int kWords = Round<kAccess>::kWords;
  float color[3];
#pragma unroll
  for (uint32_t c = 0; c < 3; ++c) {
    if constexpr (kAccess == Access::kTriplesWide || kAccess == Access::kTriples) {
      const uint32_t byte = 3 * i + c;
      color[c] = byte_float(round.word[3 * quad + byte / 4], byte % 4);
    } else {
      color[c] = byte_float(round.word[c * kWords + quad], i);
    }
  }
  count_bits(base, floor_bits(luma(color[0], color[1], color[2])));
}

template <Access kAccess>
__device__ __forceinline__ void count(const Round<kAccess>& round, const ImageTile& tile,
                                      uint32_t row, const uint32_t (&base)[4]) {
#pragma unroll
  for (uint32_t quad = 0; quad < Round<kAccess>::kWords; ++quad) {
    if (!kIsWide<kAccess> && row + quad * tile.lines_per_round >= tile.rows) return;
#pragma unroll
    for (uint32_t i = 0; i < kQuad; ++i) {
      if (kAccess == Access::kAny && i >= tile.valid) return;
      if (kAccess == Access::kGray || (kAccess == Access::kAny && tile.channels == 1)) {
        const uint32_t level = __byte_perm(round.word[quad], 0, 0x4440u | i);
        count_bits(base[0], kUnitBits + level);
      } else {
        count_pixel(round, quad, i, base[kIsWide<kAccess> ? quad : 0]);
      }
    }
  }
}

// All rows of a thread, which begins at `next`: reads one round ahead of counting.
template <Access kAccess>
__device__ __forceinline__ void count_rows(const ImageTile& tile, Cursor next,
                                           const uint32_t (&base)[4]) {
  const uint32_t step = Round<kAccess>::kLines * tile.lines_per_round;
  uint32_t row = next.row;
  Round<kAccess> one, other;
  read(one, tile, next);
  while (row < tile.rows) {
    read(other, tile, next);
    count(one, tile, row, base);
    row += step;
    if (row >= tile.rows) break;
    read(one, tile, next);
    count(other, tile, row, base);
    row += step;
  }
}

// The image of a tile: the last one that begins at or before it.
__device__ __forceinline__ const EntropyImage& image_of(const EntropyImages& images,
                                                        uint32_t tile) {
  uint32_t low = 0, high = images.count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (images.image[middle].first_tile <= tile)
      low = middle;
    else
      high = middle;
  }
  return images.image[low];
}

template <Access kAccess>
__global__ void __launch_bounds__(kMostThreads, 4)
    patch_entropy_kernel(const __grid_constant__ EntropyImages images,
                         const int64_t* __restrict__ table, float* __restrict__ entropy) {
  constexpr uint32_t kUnitQuads = kIsWide<kAccess> ? 4 : 1;
  uint32_t* counters = dynamic_shared<uint32_t>();
  const EntropyImage& image = image_of(images, blockIdx.x);
  const uint32_t local = blockIdx.x - image.first_tile;
  const uint32_t strip = local / image.tiles_across;
  const uint32_t first_column = local % image.tiles_across * image.tile_cells;
  const uint32_t cells = min(image.tile_cells, image.columns - first_column);
  clear_counters(counters, cells);
  __syncthreads();

  const uint32_t size = images.patch_size, units = cells * images.quads / kUnitQuads;
  const Spread spread = image.spread;
  const bool whole_lines = spread.units <= blockDim.x;
  const uint32_t line =
      whole_lines ? static_cast<uint32_t>(threadIdx.x * spread.reciprocal >> 32) : 0;
  ImageTile tile{};
  tile.channel_stride = image.channel_stride;
  tile.column_stride = image.column_stride;
  tile.line_stride = spread.lines_per_round * image.row_stride;
  tile.rows = line < spread.lines_per_round ? size : 0;
  tile.lines_per_round = spread.lines_per_round;
  tile.channels = image.channels;
  const uint8_t* start = image.data +
                         (static_cast<int64_t>(strip) * size + line) * image.row_stride +
                         static_cast<int64_t>(first_column) * size * image.column_stride;
  const uint32_t first_counter = shared_address(counters);
  for (uint32_t unit = threadIdx.x - line * spread.units; unit < units; unit += blockDim.x) {
    uint32_t base[4], cell = 0;
#pragma unroll
    for (uint32_t i = 0; i < kUnitQuads; ++i) {
      cell = static_cast<uint32_t>((unit * kUnitQuads + i) * images.reciprocal >> 32);
      base[i] = counter_base(first_counter, cell);
    }
    uint32_t column = unit * kUnitQuads * kQuad;
    if (kAccess == Access::kAny) {
      const uint32_t quad = unit - cell * images.quads;
      tile.valid = min(kQuad, size - quad * kQuad);
      column = cell * size + quad * kQuad;
    }
    count_rows<kAccess>(tile, {start + column * image.column_stride, line}, base);
  }
  __syncthreads();
  const int64_t first_cell = image.first_cell + static_cast<int64_t>(strip) * image.columns;
  store_entropies(counters, cells, table, size * size, entropy + first_cell + first_column);
}

}  // namespace erase_kernels
