// Lower median, level and kept count of every image. One task per image: keys of its entropies into
// scratch, three counting passes to the median, m comparisons, one table look-up. Integers decide,
// so the result is the reference's to the bit.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "checks.h"
#include "cpu/radix_select.h"
#include "cpu/segments.h"
#include "operators.h"

namespace erase_kernels {
namespace {

// Inverse of order_key; key 0 stands for every NaN, and -0 comes back as +0.
float key_value(uint32_t key) {
  const uint32_t bits = key == 0 ? 0x7fc00000u : key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float lower_median(const float* values, int64_t count, uint32_t* keys) {
  if (count == 0) return 0.0f;
  make_order_keys(values, count, keys);
  return key_value(select_key(keys, count, (count - 1) / 2, keys).key);
}

int32_t complexity_level(float median, const float* thresholds, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (median > thresholds[i]) return static_cast<int32_t>(i);
  return static_cast<int32_t>(count);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> complexity_plan_cpu(const Tensor& entropy, const Tensor& offsets,
                                                       const Tensor& thresholds,
                                                       const Tensor& count_table) {
  const int64_t images = offsets.numel() - 1, levels = thresholds.numel();
  const float* values = entropy.const_data_ptr<float>();
  const int32_t* starts = read_ids(offsets, "offsets");
  const float* limits = thresholds.const_data_ptr<float>();
  const int32_t* table = read_ids(count_table, "count_table");
  check_contiguous(entropy, "entropy");
  check_contiguous(thresholds, "thresholds");
  check_offsets("offsets", starts, images, entropy.numel());
  for (int64_t i = 0; i + 1 < levels; ++i)
    if (!(limits[i] > limits[i + 1]))
      refuse("thresholds", "expected strictly descending values, got ", limits[i], " before ",
             limits[i + 1]);

  Tensor median = torch::stable::new_empty(entropy, {images});
  Tensor level = torch::stable::new_empty(offsets, {images});
  Tensor count = torch::stable::new_empty(offsets, {images});
  float* medians = median.mutable_data_ptr<float>();
  int32_t* chosen = level.mutable_data_ptr<int32_t>();
  int32_t* counts = count.mutable_data_ptr<int32_t>();
  std::vector<uint32_t> keys(entropy.numel());
  torch::stable::parallel_for(
      0, images, segments_per_task(images, entropy.numel()), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          medians[i] =
              lower_median(values + starts[i], starts[i + 1] - starts[i], keys.data() + starts[i]);
          chosen[i] = complexity_level(medians[i], limits, levels);
          counts[i] = table[i * (levels + 1) + chosen[i]];
        }
      });
  return {median, level, count};
}

}  // namespace erase_kernels
