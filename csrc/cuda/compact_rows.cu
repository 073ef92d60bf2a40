#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cuda/compact_rows.cuh"
#include "cuda/launch.h"
#include "operators.h"

namespace erase_kernels {
namespace {

struct Dimension {
  int64_t size, stride;  // bytes
};

// The fewest dimensions with the same addresses in the same order as those before the batch.
std::vector<Dimension> leading_dimensions(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  std::vector<Dimension> merged;
  for (size_t i = 0; i + 3 < sizes.size(); ++i) {
    const Dimension next{sizes[i], strides[i] * bytes};
    if (next.size == 1) continue;
    if (!merged.empty() && merged.back().stride == next.size * next.stride)
      merged.back() = {merged.back().size * next.size, next.stride};
    else
      merged.push_back(next);
  }
  if (merged.empty()) merged.push_back({1, 0});
  return merged;
}

// Everything but addresses and planes.
RowsPlanes rows_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t last = sizes.size() - 1;
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  RowsPlanes rows{};
  rows.length = sizes[last - 1];
  rows.row_bytes = sizes[last] * bytes;
  rows.batch_stride = sizes[last - 2] > 1 ? strides[last - 2] * bytes : 0;
  rows.row_stride = sizes[last - 1] > 1 ? strides[last - 1] * bytes : 0;
  rows.element_bytes = bytes;
  rows.column_stride = strides[last] * bytes;
  rows.plain = sizes[last] <= 1 || strides[last] == 1;
  return rows;
}

// Adds what one tensor needs: planes of one stride are one entry.
void add_tensor(std::vector<RowsPlanes>& entries, const Tensor& tensor, const Tensor& out) {
  RowsPlanes rows = rows_of(tensor);
  char* const target = static_cast<char*>(out.mutable_data_ptr());
  if (tensor.numel() == 0 || out.numel() == 0) {  // no row to read, but zeros and bad lists
    const auto sizes = tensor.sizes();
    rows.planes = 1;
    if (out.numel() == 0)
      rows.row_bytes = 0;
    else
      for (size_t i = 0; i + 3 < sizes.size(); ++i) rows.planes *= sizes[i];
    rows.source = rows.target = target;
    rows.batch_stride = rows.row_stride = 0;
    rows.plain = true;
    entries.push_back(rows);
    return;
  }
  std::vector<Dimension> outer = leading_dimensions(tensor);
  rows.planes = outer.back().size;
  rows.plane_stride = outer.back().stride;
  outer.pop_back();
  int64_t places = 1;
  for (const Dimension& dimension : outer) places *= dimension.size;
  const int64_t part = out.numel() * rows.element_bytes / places;
  const char* const source = static_cast<const char*>(tensor.const_data_ptr());
  for (int64_t place = 0; place < places; ++place) {
    int64_t offset = 0, rest = place;
    for (size_t i = outer.size(); i-- > 0; rest /= outer[i].size)
      offset += rest % outer[i].size * outer[i].stride;
    rows.source = source + offset;
    rows.target = target + place * part;
    entries.push_back(rows);
  }
}

Tensor empty_result(const Tensor& tensor, int64_t batch, int64_t width) {
  std::vector<int64_t> shape(tensor.sizes().begin(), tensor.sizes().end());
  shape[shape.size() - 3] = batch;
  shape[shape.size() - 2] = width;
  return torch::stable::new_empty(tensor, shape);
}

void copy_all(const Launcher& launch, const std::vector<RowsPlanes>& entries,
              CompactRowsTable& table) {
  int64_t blocks = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    add_planes(table, blocks, entries[i]);
    check(blocks <= kMostBlocks, "tensors", "expected fewer leading dimensions");
    if (table.entry_count < kTableEntries && i + 1 < entries.size()) continue;
    launch(compact_rows_kernel, dim3(static_cast<uint32_t>(blocks)), dim3(kRowsThreads), 0, table);
    table.entry_count = 0;
    blocks = 0;
  }
}

}  // namespace

std::vector<Tensor> compact_rows_cuda(const std::vector<Tensor>& tensors, const Tensor& keep,
                                      const Tensor& counts) {
  const int64_t batch = keep.size(0), width = keep.size(1);
  check(width <= kMostIndex, "keep", "expected at most ", kMostIndex, " slots, got ", width);
  std::vector<Tensor> results;
  results.reserve(tensors.size());
  std::vector<RowsPlanes> entries;
  entries.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    results.push_back(empty_result(tensor, batch, width));
    add_tensor(entries, tensor, results.back());
  }
  if (batch == 0 || tensors.empty()) return results;
  const Launcher launch("compact_rows", keep);
  CompactRowsTable table{};
  table.slots = read_ids(keep, "keep");
  table.counts = read_ids(counts, "counts");
  table.status = launch.status();
  table.batch = batch;
  table.width = width;
  copy_all(launch, entries, table);
  return results;
}

}  // namespace erase_kernels
