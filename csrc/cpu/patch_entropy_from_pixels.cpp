// patch_entropy_from_pixels on the CPU. One task is one run of cells that lie side by side in the
// innermost cell loop; tasks write disjoint results.
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "checks.h"
#include "cpu/patch_entropy_cells.h"
#include "operators.h"

namespace erase_kernels {
namespace {

// The layout with loops that touch in memory joined, so that a row is as long as possible.
struct Geometry {
  int64_t outer, middle, inner;  // cell loops
  int64_t cell_strides[3];
  int64_t segments, rows, columns;  // pixel loops
  int64_t pixel_strides[3];
  int channels;
  int64_t channel_stride;
  bool adjacent;       // columns of neighbouring cells continue each other
  int64_t read_ahead;  // from a row to the one worth prefetching
  const void* end;     // of the tensor
};

void join_rows(Geometry& g) {
  if (g.pixel_strides[1] == g.columns * g.pixel_strides[2]) {
    g.columns *= g.rows;
    g.rows = g.segments;
    g.pixel_strides[1] = g.pixel_strides[0];
    g.segments = 1;
  }
  if (g.segments == 1 && g.pixel_strides[1] == g.columns * g.pixel_strides[2]) {
    g.columns *= g.rows;
    g.rows = 1;
  }
}

Geometry make_geometry(const Tensor& pixel_values, const std::vector<int64_t>& cell_sizes,
                       const std::vector<int64_t>& cell_strides,
                       const std::vector<int64_t>& pixel_sizes,
                       const std::vector<int64_t>& pixel_strides, int64_t channel_stride,
                       int64_t channels) {
  check(cell_sizes.size() == 2, "cell_sizes", "expected 2 sizes");
  check(cell_strides.size() == 3 && cell_strides[0] > 0, "cell_strides", "expected 3 strides");
  check(pixel_sizes.size() == 3, "pixel_sizes", "expected 3 sizes");
  check(pixel_strides.size() == 3, "pixel_strides", "expected 3 strides");
  Geometry g{};
  g.outer = pixel_values.numel() / cell_strides[0];
  g.middle = cell_sizes[0];
  g.inner = cell_sizes[1];
  std::copy(cell_strides.begin(), cell_strides.end(), g.cell_strides);
  g.segments = pixel_sizes[0];
  g.rows = pixel_sizes[1];
  g.columns = pixel_sizes[2];
  std::copy(pixel_strides.begin(), pixel_strides.end(), g.pixel_strides);
  g.channels = static_cast<int>(channels);
  g.channel_stride = channel_stride;
  g.adjacent = g.inner > 1 && g.cell_strides[2] == g.columns * g.pixel_strides[2];
  if (!g.adjacent) join_rows(g);
  // Where cells are apart, the same row of the next cell comes soon enough.
  g.read_ahead = g.adjacent    ? kPrefetchRows * g.pixel_strides[1]
                 : g.inner > 1 ? g.cell_strides[2]
                               : g.cell_strides[g.middle > 1 ? 1 : 0];
  return g;
}

// A layout from Python cannot reach outside the tensor; this holds for any caller.
void check_reach(const Geometry& g) {
  const int64_t sizes[] = {g.middle, g.inner, g.segments, g.rows, g.columns, g.channels};
  const int64_t strides[] = {g.cell_strides[1],  g.cell_strides[2],  g.pixel_strides[0],
                             g.pixel_strides[1], g.pixel_strides[2], g.channel_stride};
  int64_t reach = 1;
  for (int i = 0; i < 6; ++i) {
    check(sizes[i] >= 1 && strides[i] >= 0, "layout", "expected sizes >= 1 and strides >= 0");
    reach += (sizes[i] - 1) * strides[i];
  }
  check(reach <= g.cell_strides[0], "layout", "expected cells within the outermost stride");
}

template <typename T>
using GrayFunction = bool (*)(const PixelRow<T>&, const PixelStatistics&, int64_t, uint8_t*);

template <typename T>
ERASE_KERNELS_INLINE void prefetch_row(const Geometry& g, const PixelRow<T>& row, int64_t count) {
  const int64_t length = count * row.stride;
  for (int c = 0; c < g.channels; ++c) {
    const T* next = row.channel[c] + g.read_ahead;
    if (next + length <= g.end) prefetch(next, length * static_cast<int64_t>(sizeof(T)));
  }
}

// Returns false if some value was no integer gray level.
template <typename T>
bool run_entropies(const Geometry& g, const T* start, GrayFunction<T> to_gray,
                   const PixelStatistics& statistics, const int64_t* table,
                   std::vector<uint8_t>& buffer, float* entropy) {
  const PatchEntropyKernels& kernels = patch_entropy_kernels(active_clone());
  const int64_t rows = g.segments * g.rows;
  const BlockShape shape = block_shape(rows, g.columns, g.adjacent ? g.inner : 1);
  bool integers = true;
  for (int64_t first = 0; first < g.inner; first += shape.cells) {
    const int64_t cells = std::min(shape.cells, g.inner - first);
    const auto fill = [&](int64_t row, uint8_t* gray) {
      const T* base = start + first * g.cell_strides[2] + row / g.rows * g.pixel_strides[0] +
                      row % g.rows * g.pixel_strides[1];
      PixelRow<T> pixels{{base, base, base}, g.channels, g.pixel_strides[2]};
      for (int c = 1; c < g.channels; ++c) pixels.channel[c] = base + c * g.channel_stride;
      prefetch_row(g, pixels, cells * g.columns);
      integers &= to_gray(pixels, statistics, cells * g.columns, gray);
    };
    block_entropies(kernels, table, cells, rows, g.columns, shape.rows, buffer, entropy + first,
                    fill);
  }
  return integers;
}

template <typename T>
bool all_entropies(Geometry g, int64_t elements, const void* data, GrayFunction<T> to_gray,
                   const PixelStatistics& statistics, const int64_t* table, float* entropy) {
  std::atomic<bool> integers{true};
  g.end = static_cast<const T*>(data) + elements;
  torch::stable::parallel_for(0, g.outer * g.middle, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> buffer;
    for (int64_t run = begin; run < end; ++run) {
      const T* start = static_cast<const T*>(data) + run / g.middle * g.cell_strides[0] +
                       run % g.middle * g.cell_strides[1];
      if (!run_entropies(g, start, to_gray, statistics, table, buffer, entropy + run * g.inner)) {
        integers.store(false, std::memory_order_relaxed);
      }
    }
  });
  return integers.load();
}

PixelStatistics make_statistics(const std::vector<double>& mean, const std::vector<double>& std,
                                double scale, double tolerance) {
  check(mean.size() == 1 || mean.size() == 3, "mean", "expected 1 or 3 values");
  check(std.size() == mean.size(), "std", "expected as many values as mean");
  PixelStatistics result{};
  for (size_t c = 0; c < mean.size(); ++c) {
    result.mean[c] = static_cast<float>(mean[c]);
    result.std[c] = static_cast<float>(std[c]);
  }
  result.scale = static_cast<float>(scale);
  result.tolerance = static_cast<float>(tolerance);
  return result;
}

}  // namespace

Tensor patch_entropy_from_pixels_cpu(Tensor pixel_values, Tensor table,
                                     std::vector<int64_t> cell_sizes,
                                     std::vector<int64_t> cell_strides,
                                     std::vector<int64_t> pixel_sizes,
                                     std::vector<int64_t> pixel_strides, int64_t channel_stride,
                                     std::vector<double> mean, std::vector<double> std,
                                     double scale, double tolerance) {
  check_contiguous(pixel_values, "pixel_values");
  check_dtype(table, ScalarType::Long, "table", "int64");
  check_contiguous(table, "table");
  const PixelStatistics statistics = make_statistics(mean, std, scale, tolerance);
  const Geometry g =
      make_geometry(pixel_values, cell_sizes, cell_strides, pixel_sizes, pixel_strides,
                    channel_stride, static_cast<int64_t>(mean.size()));
  check_reach(g);
  check(table.numel() == g.segments * g.rows * g.columns + 1, "table",
        "expected one entry more than a cell has pixels");
  const int64_t cells = g.outer * g.middle * g.inner;
  Tensor entropy = torch::stable::new_empty(pixel_values, {cells}, ScalarType::Float);
  float* out = static_cast<float*>(entropy.data_ptr());
  const int64_t* entries = static_cast<const int64_t*>(table.data_ptr());
  const void* data = pixel_values.data_ptr();
  const int64_t elements = pixel_values.numel();
  const PatchEntropyKernels& kernels = patch_entropy_kernels(active_clone());
  bool integers = true;
  switch (pixel_values.scalar_type()) {
    case ScalarType::Float:
      integers =
          all_entropies<float>(g, elements, data, kernels.gray_f32, statistics, entries, out);
      break;
    case ScalarType::Half:
      integers = all_entropies<Half>(g, elements, data, kernels.gray_f16, statistics, entries, out);
      break;
    case ScalarType::BFloat16:
      integers =
          all_entropies<BFloat16>(g, elements, data, kernels.gray_bf16, statistics, entries, out);
      break;
    default:
      refuse("pixel_values", "expected float32, float16 or bfloat16");
  }
  check(integers, "pixel_values", "expected normalised uint8 gray levels (within ", tolerance,
        " of an integer after (v*std + mean)*scale), got other values; "
        "check mean, std and scale against the image processor");
  return entropy;
}

}  // namespace erase_kernels
