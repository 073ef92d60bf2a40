// In-place compaction of key/value caches. One task per (tensor, batch row, head) - paged: per
// (tensor, batch row) - that walks the runs of kept slots upwards with memmove. Destination <=
// source for every slot and both ascend, so nothing is overwritten before it was read. The only
// memory allocated is the list of runs.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/keep_lists.h"
#include "distinct_memory.h"
#include "operators.h"

namespace erase_kernels {
namespace {

// One tensor in bytes. Contiguous caches: outer = batch row. Paged caches: outer = block.
struct CacheView {
  char* data;
  int64_t heads;
  int64_t row_bytes;
  int64_t outer_stride;
  int64_t head_stride;
  int64_t slot_stride;
};

CacheView view_of(const Tensor& tensor, int64_t outer, int64_t head, int64_t slot) {
  const int64_t size = static_cast<int64_t>(tensor.element_size());
  return {static_cast<char*>(tensor.mutable_data_ptr()),
          tensor.size(head),
          tensor.size(3) * size,
          tensor.stride(outer) * size,
          tensor.stride(head) * size,
          tensor.stride(slot) * size};
}

// count rows from `from` to `to` (to <= from), both with the given stride between rows.
void move_rows(char* to, const char* from, int64_t count, int64_t row_bytes, int64_t stride) {
  if (stride == row_bytes) {
    std::memmove(to, from, static_cast<size_t>(count * row_bytes));
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    std::memmove(to + i * stride, from + i * stride, static_cast<size_t>(row_bytes));
}

// Splits tasks numbered through all tensors into (tensor, task within it).
struct TaskList {
  std::vector<int64_t> ends;

  int64_t total() const { return ends.empty() ? 0 : ends.back(); }
  size_t owner(int64_t task) const {
    return static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
  }
  int64_t local(int64_t task, size_t owner) const {
    return owner == 0 ? task : task - ends[owner - 1];
  }
};

struct Paging {
  const int32_t* table;  // [batch, width]
  int64_t width;
  int64_t block_size;
};

// Rows of one batch row through its block table; stretches end where either side changes block.
void move_paged(const CacheView& view, const std::vector<Run>& runs, const int32_t* blocks,
                int64_t block_size) {
  const auto place = [&](int64_t slot) {
    return view.data + blocks[slot / block_size] * view.outer_stride +
           slot % block_size * view.slot_stride;
  };
  const bool joined = view.head_stride == view.row_bytes;
  const int64_t pieces = joined ? 1 : view.heads;
  const int64_t bytes = joined ? view.heads * view.row_bytes : view.row_bytes;
  for (const Run& run : runs) {
    for (int64_t i = 0; i < run.length;) {
      const int64_t to = run.to + i, from = run.from + i;
      const int64_t stretch =
          std::min({run.length - i, block_size - to % block_size, block_size - from % block_size});
      for (int64_t h = 0; h < pieces; ++h)
        move_rows(place(to) + h * view.head_stride, place(from) + h * view.head_stride, stretch,
                  bytes, view.slot_stride);
      i += stretch;
    }
  }
}

// Blocks that hold kept slots exist and belong to one place of the table only.
void check_table(const KeepLists& keep, const Paging& paging, int64_t blocks) {
  std::vector<bool> taken(static_cast<size_t>(blocks), false);
  for (int64_t b = 0; b < keep.batch; ++b) {
    if (keep.counts[b] == 0) continue;
    const int64_t used = keep.row(b)[keep.counts[b] - 1] / paging.block_size + 1;
    for (int64_t j = 0; j < used; ++j) {
      const int32_t block = paging.table[b * paging.width + j];
      if (block < 0 || block >= blocks)
        refuse("block_table", "expected blocks in [0, ", blocks, ") up to the last kept slot, got ",
               block, " in batch row ", b);
      if (taken[static_cast<size_t>(block)])
        refuse("block_table", "expected every block in one place only, got block ", block,
               " twice");
      taken[static_cast<size_t>(block)] = true;
    }
  }
}

// Bytes of all kept slots, the most that can move.
int64_t kept_bytes(const KeepLists& keep, const std::vector<CacheView>& views) {
  int64_t slots = 0, slot_bytes = 0;
  for (int64_t b = 0; b < keep.batch; ++b) slots += keep.counts[b];
  for (const CacheView& view : views) slot_bytes += view.heads * view.row_bytes;
  return slots * slot_bytes;
}

std::vector<std::vector<Run>> runs_of(const KeepLists& keep) {
  std::vector<std::vector<Run>> runs;
  for (int64_t b = 0; b < keep.batch; ++b) runs.push_back(moving_runs(keep.row(b), keep.counts[b]));
  return runs;
}

}  // namespace

void compact_kv_cpu(const std::vector<Tensor>& tensors, const Tensor& keep, const Tensor& counts) {
  if (tensors.empty()) return;
  const KeepLists lists = read_keep_lists(keep, counts);
  int64_t length = tensors[0].size(2);
  for (const Tensor& tensor : tensors) length = std::min(length, tensor.size(2));
  check_keep(lists, length);
  refuse_shared_memory(tensors);
  const std::vector<std::vector<Run>> runs = runs_of(lists);
  std::vector<CacheView> views;
  TaskList tasks;
  for (const Tensor& tensor : tensors) {
    views.push_back(view_of(tensor, 0, 1, 2));
    tasks.ends.push_back(tasks.total() + lists.batch * views.back().heads);
  }
  const int64_t grain = tasks_per_thread(tasks.total(), kept_bytes(lists, views));
  torch::stable::parallel_for(0, tasks.total(), grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const size_t owner = tasks.owner(task);
      const CacheView& view = views[owner];
      const int64_t b = tasks.local(task, owner) / view.heads,
                    h = tasks.local(task, owner) % view.heads;
      char* base = view.data + b * view.outer_stride + h * view.head_stride;
      for (const Run& run : runs[static_cast<size_t>(b)])
        move_rows(base + run.to * view.slot_stride, base + run.from * view.slot_stride, run.length,
                  view.row_bytes, view.slot_stride);
    }
  });
}

Tensor compact_kv_paged_cpu(const std::vector<Tensor>& tensors, const Tensor& keep,
                            const Tensor& counts, const Tensor& block_table) {
  const KeepLists lists = read_keep_lists(keep, counts);
  const int64_t block_size = tensors.empty() ? 1 : tensors[0].size(1);
  const Paging paging{read_ids(block_table, "block_table"), block_table.size(1), block_size};
  check_keep(lists, paging.width * block_size);
  int64_t blocks = tensors.empty() ? 0 : tensors[0].size(0);
  for (const Tensor& tensor : tensors) blocks = std::min(blocks, tensor.size(0));
  check_table(lists, paging, blocks);
  refuse_shared_memory(tensors);
  const std::vector<std::vector<Run>> runs = runs_of(lists);
  std::vector<CacheView> views;
  for (const Tensor& tensor : tensors) views.push_back(view_of(tensor, 0, 2, 1));
  const int64_t total = static_cast<int64_t>(views.size()) * lists.batch;
  const int64_t grain = tasks_per_thread(total, kept_bytes(lists, views));
  torch::stable::parallel_for(0, total, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task % lists.batch;
      move_paged(views[static_cast<size_t>(task / lists.batch)], runs[static_cast<size_t>(b)],
                 paging.table + b * paging.width, block_size);
    }
  });
  Tensor freed = torch::stable::new_empty(block_table, {lists.batch, paging.width});
  int32_t* out = freed.mutable_data_ptr<int32_t>();
  for (int64_t b = 0; b < lists.batch; ++b) {
    const int64_t held = (lists.counts[b] + block_size - 1) / block_size;
    for (int64_t j = 0; j < paging.width; ++j)
      out[b * paging.width + j] = j < held ? -1 : paging.table[b * paging.width + j];
  }
  return freed;
}

}  // namespace erase_kernels
