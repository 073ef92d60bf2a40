// Launches text_to_vision_scores: rows, combine, columns and, where several parts are left, sum.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "cuda/launch.h"
#include "cuda/text_to_vision_scores.cuh"
#include "operators.h"

namespace erase_kernels {
namespace {

constexpr int kSmallChunks = 2, kLargeChunks = 4;  // of the depth in registers: 64 and 128
constexpr float kLeastScale = 0x1p-126f;           // stands for 0: exp2 of any logit times it is 1
constexpr double kLog2E = 1.4426950408889634074;   // log2(e)

struct Scratch {
  float2* parts;
  float* sums;  // the same memory, used after it
  float2* statistics;
  RowEntry* table;
};

ScoreOperand operand_of(const Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// Every position of the tensor is contiguous, made of whole 16-byte units, and aligned to them.
bool is_wide(const Tensor& x) {
  const int64_t unit = kUnitBytes / static_cast<int64_t>(x.element_size());
  if (x.stride(3) != 1 || x.size(3) % unit != 0) return false;
  for (int dim = 0; dim < 3; ++dim)
    if (x.size(dim) > 1 && x.stride(dim) % unit != 0) return false;
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kUnitBytes == 0;
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>(count); }

void run_combine(const Launcher& launch, const ScoreProblem& p, int64_t splits, int64_t heads,
                 const Scratch& scratch) {
  const int64_t checked =
      std::max<int64_t>({p.row_count, p.column_count, static_cast<int64_t>(p.batch) + 1});
  const int64_t blocks = std::max(divide_up(heads * p.row_count, kJoinedRows),
                                  divide_up(checked, kJoinedRows * kJoinGroups));
  launch(text_to_vision_scores_combine_kernel, blocks_of(blocks), kJoinedRows * kJoinGroups, 0, p,
         splits, heads, scratch.parts, scratch.statistics, scratch.table);
}

void run_sum(const Launcher& launch, const float* parts, int64_t count, int64_t scores,
             float divisor, float* out) {
  launch(text_to_vision_scores_sum_kernel, blocks_of(divide_up(scores, kSumThreads)), kSumThreads,
         0, parts, count, scores, divisor, launch.status(), out);
}

template <typename State, int kChunks, bool kDeep>
void run(const Launcher& launch, ScoreProblem p, const ScoresSizes& sizes, ScoresPlan plan,
         const Scratch& scratch, float* out) {
  using S = Stage<State, kChunks>;
  p.passes = static_cast<int32_t>(divide_up(p.depth, S::kDepth));
  const size_t ring = State::kStages * S::kUnits * kUnitBytes;
  launch(text_to_vision_scores_rows_kernel<State, kChunks, kDeep>, blocks_of(plan.row_blocks),
         static_cast<unsigned>(plan.row_warps * kWarpThreads), ring, p, plan.rows, scratch.parts);
  run_combine(launch, p, plan.rows.splits, sizes.heads, scratch);
  const float heads = sizes.per_head ? 1.0f : static_cast<float>(sizes.heads);
  const int64_t parts =
      static_cast<int64_t>(plan.columns.deals) * (sizes.per_head ? 1 : plan.columns.planes);
  if (parts == 1) plan.columns.divisor = heads;
  float* sums = parts == 1 ? out : scratch.sums;
  launch(text_to_vision_scores_columns_kernel<State, kChunks, kDeep>, blocks_of(plan.column_blocks),
         static_cast<unsigned>(plan.column_warps * kWarpThreads),
         ring + State::kStages * kStreamed * sizeof(float2), p, plan.columns, scratch.statistics,
         scratch.table, sums);
  const int64_t scores = sizes.columns * (sizes.per_head ? sizes.heads : 1);
  if (parts > 1) run_sum(launch, sums, parts, scores, heads, out);
}

template <typename State>
void run_depth(const Launcher& launch, const ScoreProblem& p, const ScoresSizes& sizes,
               const ScoresPlan& plan, const Scratch& scratch, float* out) {
  if (p.depth <= kSmallChunks * kChunk)
    run<State, kSmallChunks, false>(launch, p, sizes, plan, scratch, out);
  else if (State::kTensorCores && p.depth <= kLargeChunks * kChunk)
    run<State, kLargeChunks, !State::kTensorCores>(launch, p, sizes, plan, scratch, out);
  else
    run<State, kLargeChunks, true>(launch, p, sizes, plan, scratch, out);
}

ScoreProblem problem_of(const Tensor& query, const Tensor& key, const Tensor& rows,
                        const Tensor& row_offsets, const Tensor& columns,
                        const Tensor& column_offsets, const std::optional<Tensor>& key_mask) {
  ScoreProblem p{};
  p.query = operand_of(query);
  p.key = operand_of(key);
  p.rows = read_ids(rows, "rows");
  p.row_offsets = read_ids(row_offsets, "row_offsets");
  p.columns = read_ids(columns, "columns");
  p.column_offsets = read_ids(column_offsets, "column_offsets");
  if (key_mask.has_value()) {
    check_contiguous(*key_mask, "key_mask");
    p.mask = static_cast<const uint8_t*>(key_mask->const_data_ptr());
  }
  p.batch = static_cast<int32_t>(query.size(0));
  p.queries = static_cast<int32_t>(query.size(2));
  p.keys = static_cast<int32_t>(key.size(2));
  p.row_count = static_cast<int32_t>(rows.numel());
  p.column_count = static_cast<int32_t>(columns.numel());
  p.key_heads = static_cast<int32_t>(key.size(1));
  p.group = static_cast<int32_t>(query.size(1) / key.size(1));
  p.depth = static_cast<int32_t>(query.size(3));
  p.wide = is_wide(query) && is_wide(key);
  return p;
}

void run_type(const Launcher& launch, ScalarType type, const ScoreProblem& p,
              const ScoresSizes& sizes, const ScoresPlan& plan, const Scratch& scratch,
              float* out) {
  if (type == ScalarType::BFloat16)
    run_depth<BFloat16State>(launch, p, sizes, plan, scratch, out);
  else if (type == ScalarType::Half)
    run_depth<HalfState>(launch, p, sizes, plan, scratch, out);
  else
    run_depth<FloatState>(launch, p, sizes, plan, scratch, out);
}

}  // namespace

Tensor text_to_vision_scores_cuda(const Tensor& query, const Tensor& key, const Tensor& rows,
                                  const Tensor& row_offsets, const Tensor& columns,
                                  const Tensor& column_offsets,
                                  const std::optional<Tensor>& key_mask, double scale, bool causal,
                                  int64_t query_offset, bool normalize_over_columns,
                                  bool per_head) {
  const ScalarType type = query.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
        "query", "expected dtype float32, float16 or bfloat16");
  ScoreProblem p = problem_of(query, key, rows, row_offsets, columns, column_offsets, key_mask);
  const Launcher launch("text_to_vision_scores", query);
  p.status = launch.status();
  p.scale = std::max(static_cast<float>(std::fabs(scale) * kLog2E), kLeastScale);
  p.negative = scale < 0.0;
  p.listed = normalize_over_columns;
  p.query_offset = causal ? std::clamp<int64_t>(query_offset, -p.queries, p.keys) : p.keys;

  const ScoresSizes sizes{p.batch, query.size(1),          p.key_heads, p.row_count, p.column_count,
                          p.keys,  normalize_over_columns, per_head};
  const std::vector<int64_t> shape =
      per_head ? std::vector<int64_t>{sizes.heads, sizes.columns} : std::vector{sizes.columns};
  Tensor result = torch::stable::new_empty(query, shape, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  const bool empty = sizes.batch == 0 || sizes.heads == 0 || sizes.rows == 0 ||
                     sizes.columns == 0 || sizes.keys == 0 || p.queries == 0;
  if (empty) {  // zeros, or the mean over no heads; indices are checked all the same
    run_combine(launch, p, 0, 0, {});
    run_sum(launch, nullptr, 0, result.numel(), sizes.heads == 0 ? 0.0f : 1.0f, out);
    return result;
  }
  const ScoresPlan plan = plan_scores(sizes);
  // The table of rows, statistics, and what the passes use in turn; all of them aligned.
  const int64_t table = sizes.rows * p.group * sizeof(RowEntry) / sizeof(float);
  const int64_t statistics = 2 * sizes.heads * sizes.rows;
  Tensor memory = torch::stable::new_empty(query, {table + statistics + plan.scratch(sizes)},
                                           ScalarType::Float);
  float* floats = memory.mutable_data_ptr<float>();
  float* shared = floats + table + statistics;
  const Scratch scratch{reinterpret_cast<float2*>(shared), shared,
                        reinterpret_cast<float2*>(floats + table),
                        reinterpret_cast<RowEntry*>(floats)};
  run_type(launch, type, p, sizes, plan, scratch, out);
  return result;
}

}  // namespace erase_kernels
