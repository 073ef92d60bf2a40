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

void topk_segment(const float* scores, int64_t size, int64_t count, uint32_t* keys, uint32_t* spare,
                  int32_t* out) {
  if (count == 0) return;
  make_order_keys(scores, size, keys);
  const Selected last = select_key(keys, size, size - count, spare);
  int64_t ties = last.below + last.equal - (size - count);  // of the last key, kept from the left
  int64_t filled = 0, i = 0;
  for (; ties > 0; ++i) {
    out[filled] = static_cast<int32_t>(i);
    filled += keys[i] >= last.key;
    ties -= keys[i] == last.key;
  }
  for (; filled < count; ++i) {
    out[filled] = static_cast<int32_t>(i);
    filled += keys[i] > last.key;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> segmented_topk_cpu(const Tensor& score, const Tensor& offsets,
                                              const Tensor& counts, int64_t capacity) {
  const int64_t segments = offsets.numel() - 1;
  const float* values = score.const_data_ptr<float>();
  const int32_t* starts = read_ids(offsets, "offsets");
  const int32_t* wanted = read_ids(counts, "counts");
  check_contiguous(score, "score");
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
  std::vector<uint32_t> keys(score.numel()), spare(score.numel());
  torch::stable::parallel_for(
      0, segments, segments_per_task(segments, score.numel()), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
          topk_segment(values + starts[i], starts[i + 1] - starts[i], wanted[i],
                       keys.data() + starts[i], spare.data() + starts[i], out + ends[i]);
      });
  std::fill(out + total, out + capacity, -1);
  return {indices, out_offsets};
}

}  // namespace erase_kernels
