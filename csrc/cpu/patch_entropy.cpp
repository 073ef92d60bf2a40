// patch_entropy on the CPU. One task is one row of patches of one image; tasks are independent and
// write disjoint results, so the number of threads cannot change them.
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cpu/patch_entropy_cells.h"
#include "operators.h"

namespace erase_kernels {
namespace {

struct Image {
  const uint8_t* data;
  int channels;
  int64_t channel_stride, row_stride, column_stride;
  int64_t height;         // pixels
  int64_t patch_columns;  // patches in a row of patches
  int64_t first_strip;    // number of this image's first row of patches
  int64_t first_cell;
};

Image describe(const Tensor& image, int64_t patch_size) {
  check_dtype(image, ScalarType::Byte, "images", "uint8");
  const int64_t rank = image.dim();
  check(rank == 2 || (rank == 3 && (image.size(0) == 1 || image.size(0) == 3)), "images",
        "expected shape [3, H, W], [1, H, W] or [H, W]");
  check(image.size(rank - 2) % patch_size == 0 && image.size(rank - 1) % patch_size == 0, "images",
        "expected H and W to be multiples of ", patch_size);
  Image result{};
  result.data = static_cast<const uint8_t*>(image.data_ptr());
  result.channels = rank == 3 ? static_cast<int>(image.size(0)) : 1;
  result.channel_stride = rank == 3 ? image.stride(0) : 0;
  result.row_stride = image.stride(rank - 2);
  result.column_stride = image.stride(rank - 1);
  result.height = image.size(rank - 2);
  result.patch_columns = image.size(rank - 1) / patch_size;
  return result;
}

PixelRow<uint8_t> row_of(const Image& image, int64_t row, int64_t column) {
  const uint8_t* start = image.data + row * image.row_stride + column * image.column_stride;
  PixelRow<uint8_t> result{{start, start, start}, image.channels, image.column_stride};
  for (int c = 1; c < image.channels; ++c) result.channel[c] = start + c * image.channel_stride;
  return result;
}

ERASE_KERNELS_INLINE void prefetch_row(const Image& image, int64_t row, int64_t column,
                                       int64_t count) {
  if (row >= image.height) return;
  const PixelRow<uint8_t> pixels = row_of(image, row, column);
  const bool interleaved = image.channel_stride == 1;  // one run of bytes holds every channel
  for (int c = 0; c < (interleaved ? 1 : image.channels); ++c) {
    prefetch(pixels.channel[c], count * image.column_stride);
  }
}

void strip_entropies(const Image& image, int64_t strip, int64_t patch_size, const int64_t* table,
                     std::vector<uint8_t>& buffer, float* entropy) {
  const PatchEntropyKernels& kernels = patch_entropy_kernels(active_clone());
  const BlockShape shape = block_shape(patch_size, patch_size, image.patch_columns);
  for (int64_t first = 0; first < image.patch_columns; first += shape.cells) {
    const int64_t cells = std::min(shape.cells, image.patch_columns - first);
    block_entropies(kernels, table, cells, patch_size, patch_size, shape.rows, buffer,
                    entropy + first, [&](int64_t row, uint8_t* gray) {
                      const int64_t y = strip * patch_size + row, x = first * patch_size;
                      prefetch_row(image, y + kPrefetchRows, x, cells * patch_size);
                      kernels.gray(row_of(image, y, x), cells * patch_size, gray);
                    });
  }
}

}  // namespace

Tensor patch_entropy_cpu(std::vector<Tensor> images, int64_t patch_size, Tensor table) {
  check(!images.empty(), "images", "expected at least one image");
  check(patch_size >= 1, "patch_size", "expected at least 1, got ", patch_size);
  check_dtype(table, ScalarType::Long, "table", "int64");
  check_contiguous(table, "table");
  check(table.numel() == patch_size * patch_size + 1, "table", "expected patch_size^2 + 1 entries");
  std::vector<Image> list;
  int64_t strips = 0, cells = 0;
  for (const Tensor& image : images) {
    list.push_back(describe(image, patch_size));
    list.back().first_strip = strips;
    list.back().first_cell = cells;
    const int64_t patch_rows = image.size(image.dim() - 2) / patch_size;
    strips += patch_rows;
    cells += patch_rows * list.back().patch_columns;
  }
  Tensor entropy = torch::stable::new_empty(images[0], {cells}, ScalarType::Float);
  float* out = static_cast<float*>(entropy.data_ptr());
  const int64_t* entries = static_cast<const int64_t*>(table.data_ptr());
  torch::stable::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> buffer;
    for (int64_t strip = begin; strip < end; ++strip) {
      const auto next =
          std::upper_bound(list.begin(), list.end(), strip,
                           [](int64_t s, const Image& i) { return s < i.first_strip; });
      const Image& image = *(next - 1);
      const int64_t local = strip - image.first_strip;
      strip_entropies(image, local, patch_size, entries, buffer,
                      out + image.first_cell + local * image.patch_columns);
    }
  });
  return entropy;
}

}  // namespace erase_kernels
