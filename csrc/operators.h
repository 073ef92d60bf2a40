// Every native operator, declared once for each device that has kernels; schemas and shape
// functions are in erase_kernels/_schemas.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace erase_kernels {

using torch::stable::Tensor;

#define ERASE_KERNELS_DECLARE(device)                                                             \
  Tensor patch_entropy_##device(std::vector<Tensor> images, int64_t patch_size, Tensor table);    \
  Tensor patch_entropy_from_pixels_##device(                                                      \
      Tensor pixel_values, Tensor table, std::vector<int64_t> cell_sizes,                         \
      std::vector<int64_t> cell_strides, std::vector<int64_t> pixel_sizes,                        \
      std::vector<int64_t> pixel_strides, int64_t channel_stride, std::vector<double> mean,       \
      std::vector<double> std, double scale, double tolerance);                                   \
  std::tuple<Tensor, Tensor, Tensor> complexity_plan_##device(                                    \
      const Tensor& entropy, const Tensor& offsets, const Tensor& thresholds,                     \
      const Tensor& count_table);                                                                 \
  std::tuple<Tensor, Tensor> segmented_topk_##device(const Tensor& score, const Tensor& offsets,  \
                                                     const Tensor& counts, int64_t capacity);     \
  Tensor text_to_vision_scores_##device(                                                          \
      const Tensor& query, const Tensor& key, const Tensor& rows, const Tensor& row_offsets,      \
      const Tensor& columns, const Tensor& column_offsets, const std::optional<Tensor>& key_mask, \
      double scale, bool causal, int64_t query_offset, bool normalize_over_columns,               \
      bool per_head);                                                                             \
  void compact_kv_##device(const std::vector<Tensor>& tensors, const Tensor& keep,                \
                           const Tensor& counts);                                                 \
  Tensor compact_kv_paged_##device(const std::vector<Tensor>& tensors, const Tensor& keep,        \
                                   const Tensor& counts, const Tensor& block_table);              \
  std::vector<Tensor> compact_rows_##device(const std::vector<Tensor>& tensors,                   \
                                            const Tensor& keep, const Tensor& counts)

ERASE_KERNELS_DECLARE(cpu);
ERASE_KERNELS_DECLARE(cuda);

// Registers <operator>_<device> as <operator>_<suffix> with a library of a dispatch key.
#define ERASE_KERNELS_REGISTER(m, device, suffix)                                           \
  m.impl("patch_entropy_" suffix, TORCH_BOX(&erase_kernels::patch_entropy_##device));       \
  m.impl("patch_entropy_from_pixels_" suffix,                                               \
         TORCH_BOX(&erase_kernels::patch_entropy_from_pixels_##device));                    \
  m.impl("complexity_plan_" suffix, TORCH_BOX(&erase_kernels::complexity_plan_##device));   \
  m.impl("segmented_topk_" suffix, TORCH_BOX(&erase_kernels::segmented_topk_##device));     \
  m.impl("text_to_vision_scores_" suffix,                                                   \
         TORCH_BOX(&erase_kernels::text_to_vision_scores_##device));                        \
  m.impl("compact_kv_" suffix, TORCH_BOX(&erase_kernels::compact_kv_##device));             \
  m.impl("compact_kv_paged_" suffix, TORCH_BOX(&erase_kernels::compact_kv_paged_##device)); \
  m.impl("compact_rows_" suffix, TORCH_BOX(&erase_kernels::compact_rows_##device))

}  // namespace erase_kernels
