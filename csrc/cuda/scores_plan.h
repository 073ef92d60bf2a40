// How text_to_vision_scores divides its work. From shapes alone, never from the device, so that
// results are the same everywhere.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/scores_columns.cuh"
#include "cuda/scores_rows.cuh"

namespace erase_kernels {

constexpr int64_t kWantedBlocks = 256;    // about two for each multiprocessor of a large device
constexpr int64_t kLeastSplitKeys = 128;  // of a block: fewer would not hide its first reads
constexpr int kFewestWarps = 2;

struct ScoresSizes {
  int64_t batch, heads, key_heads, rows, columns, keys;
  bool listed, per_head;
};

struct ScoresPlan {
  RowsPlan rows;
  int row_warps;
  int64_t row_blocks;
  ColumnsPlan columns;
  int column_warps;
  int64_t column_blocks;

  // Floats of scratch that both passes use, one after the other.
  int64_t scratch(const ScoresSizes& x) const {
    const int64_t sums = static_cast<int64_t>(columns.deals) * columns.planes * x.columns;
    return std::max(rows.splits * x.heads * x.rows * 2, sums);
  }
};

inline int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Fewer warps per block where blocks are few; `blocks(warps)` says how many there are.
template <typename Blocks>
int choose_warps(int64_t items, const Blocks& blocks) {
  int warps = static_cast<int>(
      std::clamp<int64_t>(divide_up(items, kStationary), 1, static_cast<int64_t>(kMostWarps)));
  while (warps > kFewestWarps && blocks(warps) < kWantedBlocks) warps = (warps + 1) / 2;
  const int64_t parts = divide_up(items, warps * kStationary);
  return static_cast<int>(divide_up(divide_up(items, parts), kStationary));  // all equally full
}

inline ScoresPlan plan_scores(const ScoresSizes& x) {
  ScoresPlan plan{};
  const int64_t mean_rows = divide_up(x.rows, x.batch), group = x.heads / x.key_heads;
  const int64_t total = x.listed ? x.columns : x.keys, packed = mean_rows * group;
  const auto splits = [&](int warps) {
    const int64_t units =
        x.batch * x.key_heads * divide_up(packed, static_cast<int64_t>(warps) * kStationary);
    return std::clamp<int64_t>(divide_up(kWantedBlocks, units), 1,
                               divide_up(total, kLeastSplitKeys));
  };
  plan.row_warps = choose_warps(packed, [&](int warps) {
    return x.batch * x.key_heads * divide_up(packed, static_cast<int64_t>(warps) * kStationary) *
           splits(warps);
  });
  const int64_t deals = divide_up(packed, static_cast<int64_t>(plan.row_warps) * kStationary);
  const int64_t share = divide_up(total, splits(plan.row_warps));
  const int64_t keys_per_split = divide_up(share, kStreamed) * kStreamed;
  plan.rows = {static_cast<int32_t>(divide_up(total, keys_per_split)),
               static_cast<int32_t>(keys_per_split), static_cast<int32_t>(deals)};
  plan.row_blocks = plan.rows.splits * x.batch * x.key_heads * deals;

  const int64_t planes = x.per_head ? x.heads : x.key_heads, heads = x.per_head ? 1 : group;
  plan.column_warps = choose_warps(x.columns, [&](int warps) {
    return planes * divide_up(x.columns, static_cast<int64_t>(warps) * kStationary);
  });
  const int64_t blocks =
      planes * divide_up(x.columns, static_cast<int64_t>(plan.column_warps) * kStationary);
  const int64_t tiles = divide_up(mean_rows * heads, kStreamed);
  const int64_t column_deals = std::clamp<int64_t>(kWantedBlocks / blocks, 1, tiles);
  plan.columns = {static_cast<int32_t>(planes), static_cast<int32_t>(heads),
                  static_cast<int32_t>(column_deals), 1.0f};
  plan.column_blocks = blocks * column_deals;
  return plan;
}

}  // namespace erase_kernels
