// The counts[i] best scores of every segment. One task per segment: keys into scratch, counting
// passes to the key of the last kept score, then one sweep that writes every larger key and the
// first ties of that key, so indices come out ascending and ties go to the lowest index.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "checks.h"
#include "cpu/radix_select.h"
#include "cpu/segments.h"
#include "operators.h"

namespace erase_kernels {
namespace {

void topk_segment(const float* scores, int64_t size, int64_t count, uint32_t* keys, int32_t* out) {
  if (count == 0) return;
  for (int64_t i = 0; i < size; ++i) keys[i] = order_key(scores[i]);
  const int64_t dropped = size - count;
  const Selected last = select_key(keys, size, dropped);
  // Of the sorted keys the places from `dropped` on are kept; keys above `last.key` number `above`.
  int64_t above = 0;
  for (int64_t i = 0; i < size; ++i) above += keys[i] > last.key;
  int64_t ties = count - above;
  for (int64_t i = 0; i < size; ++i) {
    const bool tie = keys[i] == last.key && ties > 0;
    ties -= tie;
    if (keys[i] > last.key || tie) *out++ = static_cast<int32_t>(i);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> segmented_topk_cpu(const Tensor& score, const Tensor& offsets,
                                              const Tensor& counts, int64_t capacity) {
  const int64_t segments = offsets.numel() - 1;
  const float* values = score.const_data_ptr<float>();
  const int32_t* starts = offsets.const_data_ptr<int32_t>();
  const int32_t* wanted = counts.const_data_ptr<int32_t>();
  check_offsets("offsets", starts, segments, score.numel());
  int64_t total = 0;
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t size = starts[i + 1] - starts[i];
    if (wanted[i] < 0 || wanted[i] > size)
      refuse("counts", "expected between 0 and the segment's length ", size, ", got ", wanted[i],
             " for segment ", i);
    total += wanted[i];
  }
  if (total > capacity)
    refuse("capacity", "expected at least the sum of counts ", total, ", got ", capacity);

  Tensor indices = torch::stable::new_empty(offsets, {capacity});
  Tensor out_offsets = torch::stable::new_empty(offsets, {segments + 1});
  int32_t* out = indices.mutable_data_ptr<int32_t>();
  int32_t* ends = out_offsets.mutable_data_ptr<int32_t>();
  ends[0] = 0;
  for (int64_t i = 0; i < segments; ++i) ends[i + 1] = ends[i] + wanted[i];
  std::vector<uint32_t> keys(score.numel());
  torch::stable::parallel_for(0, segments, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      topk_segment(values + starts[i], starts[i + 1] - starts[i], wanted[i],
                   keys.data() + starts[i], out + ends[i]);
  });
  std::fill(out + total, out + capacity, -1);
  return {indices, out_offsets};
}

}  // namespace erase_kernels
