// Every CUDA operator; schemas and shape functions are in erase_kernels/_schemas.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace erase_kernels {

using torch::stable::Tensor;

Tensor patch_entropy_cuda(std::vector<Tensor> images, int64_t patch_size, Tensor table);
Tensor patch_entropy_from_pixels_cuda(Tensor pixel_values, Tensor table,
                                      std::vector<int64_t> cell_sizes,
                                      std::vector<int64_t> cell_strides,
                                      std::vector<int64_t> pixel_sizes,
                                      std::vector<int64_t> pixel_strides, int64_t channel_stride,
                                      std::vector<double> mean, std::vector<double> std,
                                      double scale, double tolerance);

std::tuple<Tensor, Tensor, Tensor> complexity_plan_cuda(const Tensor& entropy,
                                                        const Tensor& offsets,
                                                        const Tensor& thresholds,
                                                        const Tensor& count_table);
std::tuple<Tensor, Tensor> segmented_topk_cuda(const Tensor& score, const Tensor& offsets,
                                               const Tensor& counts, int64_t capacity);
Tensor text_to_vision_scores_cuda(const Tensor& query, const Tensor& key, const Tensor& rows,
                                  const Tensor& row_offsets, const Tensor& columns,
                                  const Tensor& column_offsets,
                                  const std::optional<Tensor>& key_mask, double scale, bool causal,
                                  int64_t query_offset, bool normalize_over_columns, bool per_head);
void compact_kv_cuda(const std::vector<Tensor>& tensors, const Tensor& keep, const Tensor& counts);
Tensor compact_kv_paged_cuda(const std::vector<Tensor>& tensors, const Tensor& keep,
                             const Tensor& counts, const Tensor& block_table);
std::vector<Tensor> compact_rows_cuda(const std::vector<Tensor>& tensors, const Tensor& keep,
                                      const Tensor& counts);

// Registers all of them as <operator>_<suffix>; for the library of a dispatch key.
#define ERASE_KERNELS_REGISTER_CUDA(m, suffix)                                                    \
  m.impl("patch_entropy_" suffix, TORCH_BOX(&erase_kernels::patch_entropy_cuda));                 \
  m.impl("patch_entropy_from_pixels_" suffix,                                                     \
         TORCH_BOX(&erase_kernels::patch_entropy_from_pixels_cuda));                              \
  m.impl("complexity_plan_" suffix, TORCH_BOX(&erase_kernels::complexity_plan_cuda));             \
  m.impl("segmented_topk_" suffix, TORCH_BOX(&erase_kernels::segmented_topk_cuda));               \
  m.impl("text_to_vision_scores_" suffix, TORCH_BOX(&erase_kernels::text_to_vision_scores_cuda)); \
  m.impl("compact_kv_" suffix, TORCH_BOX(&erase_kernels::compact_kv_cuda));                       \
  m.impl("compact_kv_paged_" suffix, TORCH_BOX(&erase_kernels::compact_kv_paged_cuda));           \
  m.impl("compact_rows_" suffix, TORCH_BOX(&erase_kernels::compact_rows_cuda))

}  // namespace erase_kernels
