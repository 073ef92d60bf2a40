// One block per segment, one launch.
#include <torch/csrc/stable/ops.h>

#include "cuda/launch.h"
#include "cuda/segmented_topk.cuh"
#include "operators.h"

namespace erase_kernels {

std::tuple<Tensor, Tensor> segmented_topk_cuda(const Tensor& score, const Tensor& offsets,
                                               const Tensor& counts, int64_t capacity) {
  check_dtype(score, ScalarType::Float, "score", "float32");
  check_contiguous(score, "score");
  const int64_t segments = offsets.numel() - 1;
  const Launcher launch("segmented_topk", score);
  Tensor indices = torch::stable::new_empty(offsets, {capacity});
  Tensor out_offsets = torch::stable::new_empty(offsets, {segments + 1});
  const SelectPlan plan = plan_select(score.numel(), segments);
  const TopkProblem problem{score.const_data_ptr<float>(),
                            read_ids(offsets, "offsets"),
                            read_ids(counts, "counts"),
                            indices.mutable_data_ptr<int32_t>(),
                            out_offsets.mutable_data_ptr<int32_t>(),
                            launch.status(),
                            score.numel(),
                            segments,
                            capacity,
                            plan.mean};
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  if (plan.wide)
    launch(segmented_topk_kernel<WideSelect>, grid, dim3(WideSelect::kThreads), 0, problem);
  else
    launch(segmented_topk_kernel<NarrowSelect>, grid, dim3(NarrowSelect::kThreads), 0, problem);
  return {indices, out_offsets};
}

}  // namespace erase_kernels
