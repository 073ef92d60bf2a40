#include <torch/csrc/stable/ops.h>

#include "cuda/launch.h"
#include "cuda/patch_entropy.cuh"
#include "operators.h"

namespace erase_kernels {
namespace {

constexpr int64_t kMostPatchSize = 65535;  // pixels of a patch in 32 bits

EntropyImage describe(const Tensor& tensor, int64_t patch_size) {
  check_dtype(tensor, ScalarType::Byte, "images", "uint8");
  const int64_t rank = tensor.dim();
  check(rank == 2 || (rank == 3 && (tensor.size(0) == 1 || tensor.size(0) == 3)), "images",
        "expected shape [3, H, W], [1, H, W] or [H, W]");
  check(tensor.size(rank - 2) % patch_size == 0 && tensor.size(rank - 1) % patch_size == 0,
        "images", "expected H and W to be multiples of ", patch_size);
  EntropyImage image{};
  image.data = static_cast<const uint8_t*>(tensor.data_ptr());
  image.channels = rank == 3 ? static_cast<uint32_t>(tensor.size(0)) : 1;
  image.channel_stride = rank == 3 ? tensor.stride(0) : 0;
  image.row_stride = tensor.stride(rank - 2);
  image.column_stride = tensor.stride(rank - 1);
  image.rows = static_cast<uint32_t>(tensor.size(rank - 2) / patch_size);
  image.columns = static_cast<uint32_t>(tensor.size(rank - 1) / patch_size);
  return image;
}

auto kernel_of(Access access) {
  switch (access) {
    case Access::kPlanesWide:
      return &patch_entropy_kernel<Access::kPlanesWide>;
    case Access::kPlanes:
      return &patch_entropy_kernel<Access::kPlanes>;
    case Access::kTriplesWide:
      return &patch_entropy_kernel<Access::kTriplesWide>;
    case Access::kTriples:
      return &patch_entropy_kernel<Access::kTriples>;
    case Access::kGray:
      return &patch_entropy_kernel<Access::kGray>;
    default:
      return &patch_entropy_kernel<Access::kAny>;
  }
}

}  // namespace

Tensor patch_entropy_cuda(std::vector<Tensor> images, int64_t patch_size, Tensor table) {
  check(!images.empty(), "images", "expected at least one image");
  check(patch_size >= 1 && patch_size <= kMostPatchSize, "patch_size", "expected 1 to ",
        kMostPatchSize, ", got ", patch_size);
  check_dtype(table, ScalarType::Long, "table", "int64");
  check_contiguous(table, "table");
  check(table.numel() == patch_size * patch_size + 1, "table", "expected patch_size^2 + 1 entries");
  std::vector<EntropyImage> list;
  int64_t cells = 0;
  for (const Tensor& tensor : images) {
    EntropyImage image = describe(tensor, patch_size);
    image.first_cell = cells;
    const int64_t own = int64_t{image.rows} * image.columns;
    cells += own;
    if (own > 0) list.push_back(image);
  }
  Tensor entropy = torch::stable::new_empty(images[0], {cells}, ScalarType::Float);
  const uint32_t size = static_cast<uint32_t>(patch_size), tile_cells = tile_cells_of(cells);
  std::vector<EntropyImage> alike[kAccesses];
  for (EntropyImage& image : list) {
    const Access access = choose_access(image, size, tile_cells);
    alike[static_cast<int>(access)].push_back(image);
  }
  const Launcher launch("patch_entropy", entropy);
  const int64_t* entries = static_cast<const int64_t*>(table.data_ptr());
  float* out = static_cast<float*>(entropy.data_ptr());
  for (int access = 0; access < kAccesses; ++access) {
    const std::vector<EntropyImage>& group = alike[access];
    for (size_t first = 0; first < group.size(); first += kLaunchImages) {
      const size_t count = std::min<size_t>(kLaunchImages, group.size() - first);
      const Access kind = static_cast<Access>(access);
      const EntropyLaunch plan =
          plan_launch(&group[first], static_cast<uint32_t>(count), size, kind);
      launch(kernel_of(kind), dim3(plan.tiles), dim3(plan.threads), counter_bytes(plan.tile_cells),
             plan.images, entries, out);
    }
  }
  return entropy;
}

}  // namespace erase_kernels
