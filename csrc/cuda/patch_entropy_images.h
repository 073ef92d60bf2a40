// The images of one launch of patch_entropy, and how they are read. Host side, plain numbers.
#pragma once

#include <numeric>
#include <vector>

#include "cuda/patch_entropy_plan.h"

namespace erase_kernels {

// How a thread reads pixels: units of 4 or 16 neighbours.
enum class Access : int {
  kPlanesWide,   // three planes, 16 bytes of each
  kPlanes,       // three planes, four words of each, one below the other
  kTriplesWide,  // interleaved, 48 bytes
  kTriples,      // interleaved, four times three words
  kGray,         // one channel, four words
  kAny,          // any strides, four pixels, byte by byte
};
constexpr int kAccesses = 6;

constexpr bool is_wide(Access access) {
  return access == Access::kPlanesWide || access == Access::kTriplesWide;
}

template <Access kAccess>
constexpr bool kIsWide = is_wide(kAccess);

struct EntropyImage {
  const uint8_t* data;
  int64_t channel_stride, row_stride, column_stride;  // bytes
  int64_t first_cell;                                 // number of its first cell in the result
  uint32_t rows, columns;                             // cells
  uint32_t tile_cells;                                // of a tile, side by side
  uint32_t tiles_across;
  uint32_t first_tile;  // number of its first tile in the launch
  uint32_t channels;
  Spread spread;
};

constexpr int kLaunchImages = 40;  // so that the parameters of a launch stay below 4 KB

struct EntropyImages {
  uint32_t count;
  uint32_t patch_size;
  uint32_t quads;       // of a row of a cell
  uint64_t reciprocal;  // of quads
  EntropyImage image[kLaunchImages];
};
static_assert(sizeof(EntropyImages) <= 4096, "more parameters cost a slower way to the device");

inline bool aligned_to(const EntropyImage& image, int64_t bytes, bool planes) {
  const int64_t place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(image.data));
  const int64_t channel = planes ? image.channel_stride : 0;
  return place % bytes == 0 && image.row_stride % bytes == 0 && channel % bytes == 0;
}

inline void set_tiles(EntropyImage& image, uint32_t tile_cells) {
  image.tile_cells = tile_cells;
  image.tiles_across = (image.columns + tile_cells - 1) / tile_cells;
}

constexpr uint32_t kWideBytes = 16;

// Chooses how the image is read, and tiles of about equal width, at most `tile_cells` cells.
inline Access choose_access(EntropyImage& image, uint32_t patch_size, uint32_t tile_cells) {
  const uint32_t tiles = (image.columns + tile_cells - 1) / tile_cells;
  const uint32_t even = (image.columns + tiles - 1) / tiles;
  set_tiles(image, even);
  const bool triples = image.channels == 3 && image.channel_stride == 1 && image.column_stride == 3;
  const bool lines = triples || image.column_stride == 1;
  const bool planes = !triples && image.channels == 3;
  if (!lines || patch_size % kQuad != 0 || !aligned_to(image, sizeof(uint32_t), planes))
    return Access::kAny;
  if (image.channels == 1) return Access::kGray;
  // Wide units may cross cells, but not tiles.
  const uint32_t multiple = kWideBytes / std::gcd(patch_size, kWideBytes);
  const uint32_t wide_cells = (even + multiple - 1) / multiple * multiple;
  const bool wide = wide_cells <= tile_cells && image.columns % multiple == 0 &&
                    aligned_to(image, kWideBytes, planes);
  if (wide) set_tiles(image, wide_cells);
  if (triples) return wide ? Access::kTriplesWide : Access::kTriples;
  return wide ? Access::kPlanesWide : Access::kPlanes;
}

// The images of one launch, all of one access, and its grid.
struct EntropyLaunch {
  EntropyImages images;
  uint32_t tiles, threads, tile_cells;
};

inline EntropyLaunch plan_launch(const EntropyImage* first, uint32_t count, uint32_t patch_size,
                                 Access access) {
  EntropyLaunch plan{};
  EntropyImages& images = plan.images;
  images.count = count;
  images.patch_size = patch_size;
  images.quads = (patch_size + kQuad - 1) / kQuad;
  images.reciprocal = reciprocal_of(images.quads);
  constexpr uint32_t kPixelInstructions = 17;
  const uint32_t unit = is_wide(access) ? kWideBytes : kQuad;  // pixels
  for (uint32_t i = 0; i < count; ++i) {
    EntropyImage& image = images.image[i] = first[i];
    image.first_tile = plan.tiles;
    image.spread.units = image.tile_cells * images.quads * kQuad / unit;
    plan.tiles += image.tiles_across * image.rows;
    plan.tile_cells = std::max(plan.tile_cells, image.tile_cells);
  }
  plan.threads = best_threads([&](uint32_t threads) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const EntropyImage& image = images.image[i];
      sum += uint64_t{image.tiles_across} * image.rows *
             tile_instructions(image.spread.units, patch_size, kPixelInstructions * unit, threads);
    }
    return sum;
  });
  for (uint32_t i = 0; i < count; ++i)
    images.image[i].spread = make_spread(images.image[i].spread.units, plan.threads);
  return plan;
}

}  // namespace erase_kernels
