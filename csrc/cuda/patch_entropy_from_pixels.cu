#include <torch/csrc/stable/ops.h>

#include <limits>

#include "cuda/launch.h"
#include "cuda/patch_entropy_from_pixels.cuh"
#include "operators.h"

namespace erase_kernels {
namespace {

constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();

void set_statistics(PixelCells& cells, const std::vector<double>& mean,
                    const std::vector<double>& std, double scale, double tolerance) {
  check(mean.size() == 1 || mean.size() == 3, "mean", "expected 1 or 3 values");
  check(std.size() == mean.size(), "std", "expected as many values as mean");
  cells.channels = static_cast<uint32_t>(mean.size());
  for (size_t c = 0; c < mean.size(); ++c) {
    cells.mean[c] = static_cast<float>(mean[c]);
    cells.std[c] = static_cast<float>(std[c]);
  }
  cells.scale = static_cast<float>(scale);
  cells.tolerance = static_cast<float>(tolerance);
}

// A layout from Python cannot reach outside the tensor; this holds for any caller.
void check_reach(const std::vector<int64_t>& cell_sizes, const std::vector<int64_t>& cell_strides,
                 const std::vector<int64_t>& pixel_sizes, const std::vector<int64_t>& pixel_strides,
                 int64_t channels, int64_t channel_stride) {
  check(cell_sizes.size() == 2, "cell_sizes", "expected 2 sizes");
  check(cell_strides.size() == 3 && cell_strides[0] > 0, "cell_strides", "expected 3 strides");
  check(pixel_sizes.size() == 3, "pixel_sizes", "expected 3 sizes");
  check(pixel_strides.size() == 3, "pixel_strides", "expected 3 strides");
  const int64_t sizes[] = {cell_sizes[0],  cell_sizes[1],  pixel_sizes[0],
                           pixel_sizes[1], pixel_sizes[2], channels};
  const int64_t strides[] = {cell_strides[1],  cell_strides[2],  pixel_strides[0],
                             pixel_strides[1], pixel_strides[2], channel_stride};
  int64_t reach = 1;
  for (int i = 0; i < 6; ++i) {
    check(sizes[i] >= 1 && sizes[i] <= kMostInt && strides[i] >= 0, "layout",
          "expected sizes >= 1 and strides >= 0");
    reach += (sizes[i] - 1) * strides[i];
  }
  check(reach <= cell_strides[0], "layout", "expected cells within the outermost stride");
}

template <PixelType kType>
auto kernel_of(bool vector) {
  return vector ? &patch_entropy_from_pixels_kernel<kType, true>
                : &patch_entropy_from_pixels_kernel<kType, false>;
}

auto kernel_of(ScalarType type, bool vector) {
  switch (type) {
    case ScalarType::Float:
      return kernel_of<PixelType::kFloat>(vector);
    case ScalarType::Half:
      return kernel_of<PixelType::kHalf>(vector);
    case ScalarType::BFloat16:
      return kernel_of<PixelType::kBFloat16>(vector);
    default:
      refuse("pixel_values", "expected float32, float16 or bfloat16");
  }
}

}  // namespace

Tensor patch_entropy_from_pixels_cuda(Tensor pixel_values, Tensor table,
                                      std::vector<int64_t> cell_sizes,
                                      std::vector<int64_t> cell_strides,
                                      std::vector<int64_t> pixel_sizes,
                                      std::vector<int64_t> pixel_strides, int64_t channel_stride,
                                      std::vector<double> mean, std::vector<double> std,
                                      double scale, double tolerance) {
  check_contiguous(pixel_values, "pixel_values");
  check_dtype(table, ScalarType::Long, "table", "int64");
  check_contiguous(table, "table");
  PixelCells cells{};
  set_statistics(cells, mean, std, scale, tolerance);
  check_reach(cell_sizes, cell_strides, pixel_sizes, pixel_strides, cells.channels, channel_stride);
  const int64_t outer = pixel_values.numel() / cell_strides[0];
  const int64_t count = outer * cell_sizes[0] * cell_sizes[1];
  const int64_t pixels = pixel_sizes[0] * pixel_sizes[1] * pixel_sizes[2];
  check(table.numel() == pixels + 1, "table", "expected one entry more than a cell has pixels");
  check(count <= kMostInt && pixels <= kMostInt / kMostTileCells, "layout",
        "more cells or pixels of a cell than 32 bits number");
  int64_t sizes[3];
  join_loops(pixel_sizes.data(), pixel_strides.data(), sizes, cells.pixel_strides);
  cells.data = pixel_values.data_ptr();
  std::copy(cell_strides.begin(), cell_strides.end(), cells.cell_strides);
  cells.channel_stride = channel_stride;
  for (int i = 0; i < 2; ++i) cells.cell_sizes[i] = static_cast<uint32_t>(cell_sizes[i]);
  cells.segment_rows = static_cast<uint32_t>(sizes[1]);
  cells.lines = static_cast<uint32_t>(sizes[0] * sizes[1]);
  cells.columns = static_cast<uint32_t>(sizes[2]);
  cells.quads = (cells.columns + kQuad - 1) / kQuad;
  cells.cells = static_cast<uint32_t>(count);
  const uint32_t threads = plan_pixels(cells);
  const int64_t element_bytes = pixel_values.scalar_type() == ScalarType::Float ? 4 : 2;
  const auto kernel =
      kernel_of(pixel_values.scalar_type(), whole_quads(cells, outer, element_bytes));
  Tensor entropy = torch::stable::new_empty(pixel_values, {count}, ScalarType::Float);
  const Launcher launch("patch_entropy_from_pixels", entropy);
  const uint32_t tiles = (cells.cells + cells.tile_cells - 1) / cells.tile_cells;
  launch(kernel, dim3(tiles), dim3(threads), counter_bytes(cells.tile_cells), cells,
         static_cast<const int64_t*>(table.data_ptr()), static_cast<float*>(entropy.data_ptr()),
         launch.status());
  return entropy;
}

}  // namespace erase_kernels
