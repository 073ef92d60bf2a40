// Text-to-vision scoring cut into tasks: which keys each batch row reads, and which packed query
// rows each task owns.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/score_strip.h"
#include "cpu/widen.h"

namespace erase_kernels {

constexpr int64_t kSplits =
    4;  // of a key head's rows: enough tasks for many threads, few column sums

struct View {
  const char* data;
  KeyType type;
  int64_t element_bytes;
  int64_t sizes[4];
  int64_t strides[4];
};

inline View view_of(const Tensor& tensor) {
  View view{static_cast<const char*>(tensor.const_data_ptr()),
            KeyType::kFloat,
            static_cast<int64_t>(tensor.element_size()),
            {},
            {}};
  if (tensor.scalar_type() == ScalarType::Half) view.type = KeyType::kHalf;
  if (tensor.scalar_type() == ScalarType::BFloat16) view.type = KeyType::kBFloat16;
  for (int64_t dim = 0; dim < 4; ++dim) {
    view.sizes[dim] = tensor.size(dim);
    view.strides[dim] = tensor.stride(dim);
  }
  return view;
}

inline float read_element(const View& view, int64_t offset) {
  const char* place = view.data + offset * view.element_bytes;
  if (view.type == KeyType::kFloat) {
    float value;
    std::memcpy(&value, place, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, place, sizeof(bits));
  return view.type == KeyType::kHalf ? widen_half(bits) : widen_bfloat16(bits);
}

// What all heads of one batch row share.
struct BatchRow {
  const int32_t* rows;
  int64_t row_count;
  std::vector<int32_t> limits;        // [row_count] last key position each row may see
  std::vector<int32_t> key_list;      // positions that enter the denominator
  std::vector<int32_t> column_slots;  // place of each column in key_list, -1 where it is not
  int64_t first_column;               // in the result
};

struct Problem {
  View query;
  View key;
  float scale;
  int64_t group;  // query heads per key head
  bool per_head;
  std::vector<BatchRow> batch;
};

// Strips [first_row, last_row) of the packed rows of one key head.
struct Task {
  int64_t batch;
  int64_t key_head;
  int64_t first_row;
  int64_t last_row;
  int64_t first_sum;  // in the buffer of column sums

  int64_t first_head(int64_t rows) const { return first_row / rows; }
  int64_t last_head(int64_t rows) const { return (last_row + rows - 1) / rows; }
};

inline BatchRow prepare_row(const Tensor& key, const bool* mask, const int32_t* rows,
                            int64_t row_count, const int32_t* columns, int64_t column_count,
                            bool causal, int64_t query_offset, bool normalize_over_columns) {
  const int64_t length = key.size(2);
  BatchRow row{rows, row_count, {}, {}, {}, 0};
  int64_t seen = 0;  // keys some row may see
  for (int64_t r = 0; r < row_count; ++r) {
    const int64_t limit =
        causal ? std::clamp<int64_t>(rows[r] + query_offset, -1, length - 1) : length - 1;
    row.limits.push_back(static_cast<int32_t>(limit));
    seen = std::max(seen, limit + 1);
  }
  const auto valid = [&](int64_t j) { return j < seen && (mask == nullptr || mask[j]); };
  row.column_slots.assign(static_cast<size_t>(column_count), -1);
  if (normalize_over_columns) {
    for (int64_t c = 0; c < column_count; ++c) {
      if (!valid(columns[c])) continue;
      row.column_slots[static_cast<size_t>(c)] = static_cast<int32_t>(row.key_list.size());
      row.key_list.push_back(columns[c]);
    }
    return row;
  }
  std::vector<int32_t> slots(static_cast<size_t>(length), -1);
  for (int64_t j = 0; j < seen; ++j) {
    if (!valid(j)) continue;
    slots[static_cast<size_t>(j)] = static_cast<int32_t>(row.key_list.size());
    row.key_list.push_back(static_cast<int32_t>(j));
  }
  for (int64_t c = 0; c < column_count; ++c)
    row.column_slots[static_cast<size_t>(c)] = slots[static_cast<size_t>(columns[c])];
  return row;
}

inline std::vector<Task> make_tasks(const Problem& p, int64_t& sums) {
  std::vector<Task> tasks;
  sums = 0;
  for (int64_t b = 0; b < static_cast<int64_t>(p.batch.size()); ++b) {
    const BatchRow& row = p.batch[static_cast<size_t>(b)];
    const int64_t columns = static_cast<int64_t>(row.column_slots.size());
    if (row.row_count == 0 || columns == 0 || row.key_list.empty()) continue;
    const int64_t packed = p.group * row.row_count;
    const int64_t strips = (packed + kStripRows - 1) / kStripRows;
    const int64_t step = (strips + kSplits - 1) / kSplits * kStripRows;
    for (int64_t h = 0; h < p.key.sizes[1]; ++h) {
      for (int64_t first = 0; first < packed; first += step) {
        tasks.push_back({b, h, first, std::min(first + step, packed), sums});
        const int64_t heads =
            tasks.back().last_head(row.row_count) - tasks.back().first_head(row.row_count);
        sums += columns * (p.per_head ? heads : 1);
      }
    }
  }
  return tasks;
}

// Queries of packed rows [first, first + count) as [depth, padded], scaled; limits of padding rows
// are -1.
inline void pack_queries(const Problem& p, const Task& task, int64_t first, int64_t count,
                         int64_t padded, float* packed, int32_t* limits) {
  const BatchRow& row = p.batch[static_cast<size_t>(task.batch)];
  const int64_t depth = p.query.sizes[3];
  for (int64_t lane = 0; lane < padded; ++lane) {
    if (lane >= count) {
      limits[lane] = -1;
      for (int64_t d = 0; d < depth; ++d) packed[d * padded + lane] = 0.0f;
      continue;
    }
    const int64_t head = task.key_head * p.group + (first + lane) / row.row_count;
    const int64_t r = (first + lane) % row.row_count;
    limits[lane] = row.limits[static_cast<size_t>(r)];
    const int64_t start = task.batch * p.query.strides[0] + head * p.query.strides[1] +
                          row.rows[r] * p.query.strides[2];
    for (int64_t d = 0; d < depth; ++d)
      packed[d * padded + lane] = read_element(p.query, start + d * p.query.strides[3]) * p.scale;
  }
}

}  // namespace erase_kernels
