// Kept rows of several tensors into new ones, zeros after them. One task per (tensor, leading
// index, batch row, chunk of output rows); a row of unit stride is one memcpy, any other is
// gathered element by element.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/keep_lists.h"
#include "operators.h"

namespace erase_kernels {
namespace {

constexpr int64_t kRowsPerTask =
    256;  // output rows: enough work to hide a task, enough tasks for one image

struct RowSource {
  const char* data;
  int64_t element_bytes;
  int64_t features;
  int64_t feature_stride;  // elements
  int64_t row_stride;      // bytes
};

template <typename Element>
void gather_elements(const RowSource& source, const char* from, char* to) {
  const Element* in = reinterpret_cast<const Element*>(from);
  Element* out = reinterpret_cast<Element*>(to);
  for (int64_t f = 0; f < source.features; ++f) out[f] = in[f * source.feature_stride];
}

void copy_row(const RowSource& source, int64_t row, char* to) {
  const char* from = source.data + row * source.row_stride;
  if (source.feature_stride == 1 || source.features == 1) {
    std::memcpy(to, from, static_cast<size_t>(source.features * source.element_bytes));
    return;
  }
  switch (source.element_bytes) {
    case 1:
      return gather_elements<uint8_t>(source, from, to);
    case 2:
      return gather_elements<uint16_t>(source, from, to);
    case 4:
      return gather_elements<uint32_t>(source, from, to);
    default:
      return gather_elements<uint64_t>(source, from, to);
  }
}

// Bytes from the tensor's start to leading index `lead` (row-major over all dimensions before the
// batch).
int64_t leading_offset(const Tensor& tensor, int64_t lead) {
  int64_t offset = 0;
  for (int64_t dim = tensor.dim() - 4; dim >= 0; --dim) {
    offset += lead % tensor.size(dim) * tensor.stride(dim);
    lead /= tensor.size(dim);
  }
  return offset * static_cast<int64_t>(tensor.element_size());
}

void copy_plane(const RowSource& source, const int32_t* slots, int64_t count, int64_t first,
                int64_t last, char* out) {
  const int64_t row_bytes = source.features * source.element_bytes;
  const int64_t copied = std::clamp(count, first, last);
  for (int64_t row = first; row < copied; ++row)
    copy_row(source, slots[row], out + row * row_bytes);
  std::memset(out + copied * row_bytes, 0, static_cast<size_t>((last - copied) * row_bytes));
}

Tensor compact_one(const Tensor& tensor, const KeepLists& keep) {
  const int64_t rank = tensor.dim(), size = static_cast<int64_t>(tensor.element_size());
  std::vector<int64_t> shape(tensor.sizes().begin(), tensor.sizes().end());
  int64_t leads = 1;
  for (int64_t dim = 0; dim + 3 < rank; ++dim) leads *= shape[static_cast<size_t>(dim)];
  shape[static_cast<size_t>(rank - 3)] = keep.batch;
  shape[static_cast<size_t>(rank - 2)] = keep.width;
  Tensor result = torch::stable::new_empty(tensor, shape);
  if (result.numel() == 0) return result;
  const char* data = static_cast<const char*>(tensor.const_data_ptr());
  char* out = static_cast<char*>(result.mutable_data_ptr());
  const int64_t batch_stride = tensor.size(rank - 3) == 1 ? 0 : tensor.stride(rank - 3) * size;
  const int64_t plane_bytes = keep.width * tensor.size(rank - 1) * size;
  const int64_t chunks = (keep.width + kRowsPerTask - 1) / kRowsPerTask;
  const int64_t tasks = leads * keep.batch * chunks;
  const int64_t grain = tasks_per_thread(tasks, result.numel() * size);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t plane = task / chunks, b = plane % keep.batch,
                    start = task % chunks * kRowsPerTask;
      const RowSource source{data + leading_offset(tensor, plane / keep.batch) + b * batch_stride,
                             size, tensor.size(rank - 1), tensor.stride(rank - 1),
                             tensor.stride(rank - 2) * size};
      copy_plane(source, keep.row(b), keep.counts[b], start,
                 std::min(start + kRowsPerTask, keep.width), out + plane * plane_bytes);
    }
  });
  return result;
}

}  // namespace

std::vector<Tensor> compact_rows_cpu(const std::vector<Tensor>& tensors, const Tensor& keep,
                                     const Tensor& counts) {
  const KeepLists lists = read_keep_lists(keep, counts);
  for (const Tensor& tensor : tensors) check_keep(lists, tensor.size(tensor.dim() - 2));
  std::vector<Tensor> results;
  for (const Tensor& tensor : tensors) results.push_back(compact_one(tensor, lists));
  return results;
}

}  // namespace erase_kernels
