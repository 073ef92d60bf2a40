// One block per image, one launch.
#include <torch/csrc/stable/ops.h>

#include "cuda/complexity_plan.cuh"
#include "cuda/launch.h"
#include "operators.h"

namespace erase_kernels {

std::tuple<Tensor, Tensor, Tensor> complexity_plan_cuda(const Tensor& entropy,
                                                        const Tensor& offsets,
                                                        const Tensor& thresholds,
                                                        const Tensor& count_table) {
  check_dtype(entropy, ScalarType::Float, "entropy", "float32");
  check_contiguous(entropy, "entropy");
  check_dtype(thresholds, ScalarType::Float, "thresholds", "float32");
  check_contiguous(thresholds, "thresholds");
  const int64_t images = offsets.numel() - 1;
  const Launcher launch("complexity_plan", entropy);
  Tensor median = torch::stable::new_empty(entropy, {images});
  Tensor level = torch::stable::new_empty(offsets, {images});
  Tensor count = torch::stable::new_empty(offsets, {images});
  const SelectPlan plan = plan_select(entropy.numel(), images);
  const ComplexityProblem problem{entropy.const_data_ptr<float>(),
                                  read_ids(offsets, "offsets"),
                                  thresholds.const_data_ptr<float>(),
                                  read_ids(count_table, "count_table"),
                                  median.mutable_data_ptr<float>(),
                                  level.mutable_data_ptr<int32_t>(),
                                  count.mutable_data_ptr<int32_t>(),
                                  launch.status(),
                                  entropy.numel(),
                                  images,
                                  thresholds.numel(),
                                  plan.mean};
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  if (plan.wide)
    launch(complexity_plan_kernel<WideSelect>, grid, dim3(WideSelect::kThreads), 0, problem);
  else
    launch(complexity_plan_kernel<NarrowSelect>, grid, dim3(NarrowSelect::kThreads), 0, problem);
  return {median, level, count};
}

}  // namespace erase_kernels
