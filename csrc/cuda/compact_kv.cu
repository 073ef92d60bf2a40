#include <torch/csrc/stable/ops.h>

#include "cuda/compact_kv.cuh"
#include "cuda/launch.h"
#include "distinct_memory.h"
#include "operators.h"

namespace erase_kernels {
namespace {

// Table entries up to which one block counts the users of blocks, zeros included: no more than a
// few turns of its loop, against a launch.
constexpr int64_t kOneBlockEntries = 8 * kUserThreads;

struct Dimensions {
  size_t head, slot;
};

CacheLayout layout_of(const Tensor& tensor, const void* data, Dimensions dimensions) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  const auto stride = [&](size_t i) { return sizes[i] > 1 ? strides[i] * bytes : 0; };
  CacheLayout layout{sizes[3] * bytes,        sizes[dimensions.head],  stride(0),
                     stride(dimensions.head), stride(dimensions.slot), 0};
  layout.unit =
      unit_of(layout.row_bytes | layout.outer_stride | layout.head_stride | layout.slot_stride |
              static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)));
  return layout;
}

std::vector<LayoutMembers> members_of(const std::vector<Tensor>& tensors, Dimensions dimensions) {
  refuse_shared_memory(tensors);
  std::vector<LayoutMembers> members;
  for (const Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    char* data = static_cast<char*>(tensor.mutable_data_ptr());
    add_member(members, layout_of(tensor, data, dimensions), data);
  }
  if (members.empty())  // the lists are checked all the same
    members.push_back({{0, 1, 0, 0, 0, kWidestUnit}, {nullptr}});
  return members;
}

// Launches until every tensor has had its turn; `table` holds the lists.
void move_all(const Launcher& launch, const std::vector<LayoutMembers>& members,
              CompactKvTable& table) {
  int64_t blocks = 0;
  const auto flush = [&] {
    check(blocks <= kMostBlocks, "tensors", "expected fewer batch rows and heads");
    launch(compact_kv_kernel, dim3(static_cast<uint32_t>(blocks)), dim3(kMoveThreads),
           kMoveSharedBytes, table);
    table.group_count = table.tensor_count = 0;
    table.frees = false;
    blocks = 0;
  };
  for (const LayoutMembers& group : members) {
    for (size_t done = 0; done < group.data.size();) {
      const size_t added = add_tensors(table, blocks, group.layout, group.data.data() + done,
                                       group.data.size() - done);
      if (added == 0) flush();
      done += added;
    }
  }
  flush();
}

KeepLists lists_of(const Launcher& launch, const Tensor& keep, const Tensor& counts,
                   int64_t length) {
  return {read_ids(keep, "keep"), read_ids(counts, "counts"),
          launch.status(),        keep.size(0),
          keep.size(1),           static_cast<int32_t>(std::min(length, kMostIndex))};
}

int64_t least_size(const std::vector<Tensor>& tensors, int64_t dimension) {
  int64_t least = INT64_MAX;
  for (const Tensor& tensor : tensors) least = std::min(least, tensor.size(dimension));
  return least;
}

void count_users(const Launcher& launch, const KeepLists& lists, const Paging& paging) {
  const int64_t entries = lists.batch * paging.width;
  if (entries == 0) return;
  if (entries <= kOneBlockEntries) {
    launch(compact_kv_users_kernel, dim3(1), dim3(kUserThreads), 0, lists, paging, true, true);
    return;
  }
  const dim3 grid(static_cast<uint32_t>(std::min(ceil_divide(entries, kUserThreads), kMostBlocks)));
  launch(compact_kv_users_kernel, grid, dim3(kUserThreads), 0, lists, paging, true, false);
  launch(compact_kv_users_kernel, grid, dim3(kUserThreads), 0, lists, paging, false, true);
}

}  // namespace

void compact_kv_cuda(const std::vector<Tensor>& tensors, const Tensor& keep, const Tensor& counts) {
  if (tensors.empty() || keep.size(0) == 0) return;
  for (const Tensor& tensor : tensors)
    check(tensor.size(0) == keep.size(0), "tensors", "expected the batch of keep");
  const std::vector<LayoutMembers> members = members_of(tensors, {1, 2});
  const Launcher launch("compact_kv_", keep);
  CompactKvTable table{};
  table.lists = lists_of(launch, keep, counts, least_size(tensors, 2));
  move_all(launch, members, table);
}

Tensor compact_kv_paged_cuda(const std::vector<Tensor>& tensors, const Tensor& keep,
                             const Tensor& counts, const Tensor& block_table) {
  const int32_t* blocks_of_rows = read_ids(block_table, "block_table");
  const int64_t batch = keep.size(0), width = block_table.size(1);
  Tensor freed = torch::stable::new_empty(block_table, {batch, width});
  if (tensors.empty() || batch == 0) return freed;
  for (const Tensor& tensor : tensors)
    check(tensor.size(1) == tensors[0].size(1) && tensor.size(1) > 0, "tensors",
          "expected blocks of one size above 0");
  const std::vector<LayoutMembers> members = members_of(tensors, {2, 1});
  const Launcher launch("compact_kv_", keep);
  const int64_t blocks = std::min(least_size(tensors, 0), kMostIndex);
  const int64_t block_slots = std::min(tensors[0].size(1), kMostIndex);
  const Tensor users = torch::stable::new_empty(block_table, {std::max<int64_t>(blocks, 1)});
  CompactKvTable table{};
  const int64_t length = width > kMostIndex / block_slots ? kMostIndex : width * block_slots;
  table.lists = lists_of(launch, keep, counts, length);
  table.paging = {
      blocks_of_rows, users.mutable_data_ptr<int32_t>(), freed.mutable_data_ptr<int32_t>(), width,
      blocks,         FastDivide(block_slots),           static_cast<int32_t>(block_slots), true};
  table.frees = true;
  count_users(launch, table.lists, table.paging);
  move_all(launch, members, table);
  return freed;
}

}  // namespace erase_kernels
