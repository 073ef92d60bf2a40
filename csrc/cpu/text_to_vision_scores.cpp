// Attention mass that text rows put on vision columns. The query heads of a key head and the rows
// are packed into one list (head-major), cut into strips of at most kStripRows; score_strip.h
// explains a strip. One task per (batch row, key head, split of that list); a task adds into its
// own column sums, and the sums of all tasks are added in task order: the split depends on shapes
// only, so the result does not depend on threads. Extra memory: per thread kStripRows floats per
// key; per task one float per column (and head, if per_head).
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "checks.h"
#include "cpu/score_strip.h"
#include "cpu/scores_problem.h"
#include "cpu/segments.h"
#include "operators.h"

namespace erase_kernels {
namespace {

struct Workspace {
  std::unique_ptr<float[]> probabilities, block_scales, key_rows, queries;

  Workspace(int64_t keys, int64_t depth)
      : probabilities(new float[static_cast<size_t>(score_blocks(keys) * kKeyBlock * kStripRows)]),
        block_scales(new float[static_cast<size_t>(score_blocks(keys) * kStripRows)]),
        key_rows(new float[static_cast<size_t>(kKeyBlock * depth)]),
        queries(new float[static_cast<size_t>(depth * kStripRows)]) {}
};

void run_task(const Problem& p, const Task& task, Workspace& space, StripFunction run,
              float* sums) {
  const BatchRow& row = p.batch[static_cast<size_t>(task.batch)];
  const int64_t columns = static_cast<int64_t>(row.column_slots.size());
  const int64_t key_start = task.batch * p.key.strides[0] + task.key_head * p.key.strides[1];
  const KeyView keys{p.key.data + key_start * p.key.element_bytes,
                     p.key.type,
                     p.key.strides[2],
                     p.key.strides[3],
                     row.key_list.data(),
                     static_cast<int64_t>(row.key_list.size())};
  const StripScratch scratch{space.probabilities.get(), space.block_scales.get(),
                             space.key_rows.get()};
  int32_t limits[kStripRows];
  for (int64_t first = task.first_row; first < task.last_row; first += kStripRows) {
    const int64_t count = std::min(kStripRows, task.last_row - first);
    const int64_t padded = (count + kRowAlign - 1) / kRowAlign * kRowAlign;
    pack_queries(p, task, first, count, padded, space.queries.get(), limits);
    const Strip strip{space.queries.get(),     p.query.sizes[3], padded, limits, keys,
                      row.column_slots.data(), columns};
    std::vector<StripOutput> outputs;
    if (!p.per_head) outputs.push_back({0, padded, sums + task.first_sum});
    const int64_t base = task.first_head(row.row_count),
                  last_head = (first + count + row.row_count - 1) / row.row_count;
    for (int64_t head = first / row.row_count; p.per_head && head < last_head; ++head)
      outputs.push_back({std::max<int64_t>(head * row.row_count - first, 0),
                         std::min((head + 1) * row.row_count - first, count),
                         sums + task.first_sum + (head - base) * columns});
    run(strip, scratch, outputs.data(), static_cast<int64_t>(outputs.size()));
  }
}

// Adds the tasks' sums in task order; the mean over heads is taken last.
void reduce_tasks(const Problem& p, const std::vector<Task>& tasks, const float* sums,
                  int64_t total_columns, float* out) {
  for (const Task& task : tasks) {
    const BatchRow& row = p.batch[static_cast<size_t>(task.batch)];
    const int64_t columns = static_cast<int64_t>(row.column_slots.size());
    const int64_t first = task.first_head(row.row_count), last = task.last_head(row.row_count);
    for (int64_t plane = 0; plane < (p.per_head ? last - first : 1); ++plane) {
      const int64_t head = p.per_head ? task.key_head * p.group + first + plane : 0;
      float* to = out + head * total_columns + row.first_column;
      const float* from = sums + task.first_sum + plane * columns;
      for (int64_t c = 0; c < columns; ++c) to[c] += from[c];
    }
  }
  if (p.per_head) return;
  const float heads = static_cast<float>(p.query.sizes[1]);
  for (int64_t c = 0; c < total_columns; ++c) out[c] /= heads;
}

void check_result(const float* out, int64_t count, int64_t total_columns) {
  for (int64_t i = 0; i < count; ++i)
    if (std::isnan(out[i]))
      refuse("query, key", "expected scores without NaN, got NaN in column ", i % total_columns);
}

}  // namespace

Tensor text_to_vision_scores_cpu(const Tensor& query, const Tensor& key, const Tensor& rows,
                                 const Tensor& row_offsets, const Tensor& columns,
                                 const Tensor& column_offsets,
                                 const std::optional<Tensor>& key_mask, double scale, bool causal,
                                 int64_t query_offset, bool normalize_over_columns, bool per_head) {
  const int64_t batch = query.size(0), heads = query.size(1), length = key.size(2),
                total = columns.numel();
  const int32_t* row_ends = read_ids(row_offsets, "row_offsets");
  const int32_t* column_ends = read_ids(column_offsets, "column_offsets");
  const int32_t* row_data = read_ids(rows, "rows");
  const int32_t* column_data = read_ids(columns, "columns");
  const bool* mask = key_mask.has_value() ? key_mask->const_data_ptr<bool>() : nullptr;
  if (mask != nullptr) check_contiguous(*key_mask, "key_mask");
  check_offsets("row_offsets", row_ends, batch, rows.numel());
  check_offsets("column_offsets", column_ends, batch, total);
  check_indices("rows", row_data, rows.numel(), query.size(2));
  check_indices("columns", column_data, total, length);

  Problem p{view_of(query),      view_of(key), static_cast<float>(scale),
            heads / key.size(1), per_head,     {}};
  int64_t most_keys = 0;
  for (int64_t b = 0; b < batch; ++b) {
    p.batch.push_back(prepare_row(key, mask == nullptr ? nullptr : mask + b * length,
                                  row_data + row_ends[b], row_ends[b + 1] - row_ends[b],
                                  column_data + column_ends[b], column_ends[b + 1] - column_ends[b],
                                  causal, query_offset, normalize_over_columns));
    p.batch.back().first_column = column_ends[b];
    most_keys = std::max(most_keys, static_cast<int64_t>(p.batch.back().key_list.size()));
  }
  int64_t sum_count = 0;
  const std::vector<Task> tasks = make_tasks(p, sum_count);
  std::vector<float> sums(static_cast<size_t>(sum_count), 0.0f);
  const StripFunction run = strip_function();
  torch::stable::parallel_for(
      0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t first, int64_t last) {
        Workspace space(most_keys, p.query.sizes[3]);
        for (int64_t i = first; i < last; ++i)
          run_task(p, tasks[static_cast<size_t>(i)], space, run, sums.data());
      });

  const std::vector<int64_t> shape =
      per_head ? std::vector<int64_t>{heads, total} : std::vector<int64_t>{total};
  Tensor result = torch::stable::new_zeros(query, shape, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  reduce_tasks(p, tasks, sums.data(), total, out);
  check_result(out, result.numel(), total);
  return result;
}

}  // namespace erase_kernels
