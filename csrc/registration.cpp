// Kernels for the operators that erase_kernels/_schemas.py defines.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(erase_kernels, CPU, m) {
  m.impl("patch_entropy_native", TORCH_BOX(&erase_kernels::patch_entropy_cpu));
  m.impl("patch_entropy_from_pixels_native",
         TORCH_BOX(&erase_kernels::patch_entropy_from_pixels_cpu));
  m.impl("complexity_plan_native", TORCH_BOX(&erase_kernels::complexity_plan_cpu));
  m.impl("segmented_topk_native", TORCH_BOX(&erase_kernels::segmented_topk_cpu));
  m.impl("text_to_vision_scores_native", TORCH_BOX(&erase_kernels::text_to_vision_scores_cpu));
  m.impl("compact_kv_native", TORCH_BOX(&erase_kernels::compact_kv_cpu));
  m.impl("compact_kv_paged_native", TORCH_BOX(&erase_kernels::compact_kv_paged_cpu));
  m.impl("compact_rows_native", TORCH_BOX(&erase_kernels::compact_rows_cpu));
}
