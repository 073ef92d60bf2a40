// Logits of 32 stationary rows per warp and 32 streamed rows, which a block copies into shared
// memory stage by stage. In a thread, lane = 4 g + t, logit [m][j][2 h + c] belongs to stationary
// row 16 m + 8 h + g and to streamed row 8 j + 2 t + c: the fragments of mma.m16n8k16. Half
// precision goes through tensor cores, the stationary rows in registers. The order of the depth
// within a product is free as long as both sides agree, so each thread reads 16 contiguous bytes,
// and no fragment is rearranged. float32 is multiplied as it is: sums of truncated products
// (tf32, or several bfloat16) would not keep float32's error budget without a proof for each
// generation of tensor cores.
#pragma once

#include "cuda/scores_problem.cuh"

namespace erase_kernels {

constexpr int kStreamed = 32;    // rows of a stage
constexpr int kStationary = 32;  // rows of a warp
constexpr int kChunk = 32;       // elements of the depth that two products of 16 take
constexpr int kUnitBytes = 16;
// Twelve warps, so three per scheduler, may have 168 registers each.
constexpr int kMostWarps = 4;  // of a block
constexpr int kBlocksPerMultiprocessor = 3;

using Logits = float[2][4][4];

struct BFloat16State {
  using Word = uint16_t;
  static constexpr int kStages = 3;  // more would not fit three blocks into 100 KB (sm_86, sm_120)
  static constexpr bool kTensorCores = true;
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_m16n8k16_bfloat16(c, a, b);
  }
};
struct HalfState {
  using Word = uint16_t;
  static constexpr int kStages = 3;
  static constexpr bool kTensorCores = true;
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_m16n8k16_half(c, a, b);
  }
};
struct FloatState {
  using Word = uint32_t;
  static constexpr int kStages = 2;  // of twice the bytes, and many times the work
  static constexpr bool kTensorCores = false;
};

// Sizes of a stage for a state and the depth that one pass takes, in chunks.
template <typename State, int kChunks>
struct Stage {
  static constexpr int kUnit = kUnitBytes / static_cast<int>(sizeof(typename State::Word));
  static constexpr int kDepth = kChunks * kChunk;   // elements of a pass
  static constexpr int kRowUnits = kDepth / kUnit;  // 16-byte units of a row
  static constexpr int kUnits = kStreamed * kRowUnits;

  // Keeps the reads of a quarter warp in different banks.
  static __device__ __forceinline__ int place(int row, int unit) {
    const int turn = State::kTensorCores ? (row & 1) << 2 : row >> 1 & 3;
    return row * kRowUnits + (unit ^ turn);
  }
};

// One unit of a row, zero beyond the depth; `start` is the row's place, -1 for zeros. The first
// reads it as it is, the second element by element.
template <typename State>
__device__ __forceinline__ uint4 read_wide(const ScoreProblem& p, const ScoreOperand& x,
                                           int64_t start, int element) {
  const typename State::Word* data = static_cast<const typename State::Word*>(x.data);
  if (start < 0 || element >= p.depth) return make_uint4(0, 0, 0, 0);
  return __ldg(reinterpret_cast<const uint4*>(data + start + element));
}
template <typename State>
__device__ __forceinline__ uint4 read_narrow(const ScoreProblem& p, const ScoreOperand& x,
                                             int64_t start, int element) {
  constexpr int kUnit = kUnitBytes / static_cast<int>(sizeof(typename State::Word));
  const typename State::Word* data = static_cast<const typename State::Word*>(x.data);
  uint32_t words[4] = {0, 0, 0, 0};
  if (start >= 0) {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (element + i >= p.depth) continue;
      const uint32_t word = data[start + (element + i) * x.depth];
      words[i * 4 / kUnit] |= kUnit == 4 ? word : word << (i % 2 * 16);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
template <typename State>
__device__ __forceinline__ uint4 read_unit(const ScoreProblem& p, const ScoreOperand& x,
                                           int64_t start, int element) {
  return p.wide ? read_wide<State>(p, x, start, element) : read_narrow<State>(p, x, start, element);
}

// Starts copying a stage: pass `pass` of the rows whose starts the lanes of every warp hold (-1:
// zeros). Warps are whole, and so are the rows that they copy.
template <typename State, int kChunks>
__device__ __forceinline__ void copy_stage(const ScoreProblem& p, const ScoreOperand& x,
                                           uint4* tile, int pass, int64_t lane_start) {
  using S = Stage<State, kChunks>;
  const typename State::Word* data = static_cast<const typename State::Word*>(x.data);
  // A thread keeps to one unit of the rows it copies.
  const int unit = threadIdx.x % S::kRowUnits, step = blockDim.x / S::kRowUnits;
  const int element = pass * S::kDepth + unit * S::kUnit;
  if (p.wide) {
    const bool inside = element < p.depth;
#pragma unroll 1
    for (int row = threadIdx.x / S::kRowUnits; row < kStreamed; row += step) {
      const int64_t start = __shfl_sync(kAllLanes, lane_start, row);
      const bool valid = inside && start >= 0;
      cp_async16(tile + S::place(row, unit), data + (valid ? start + element : 0), valid);
    }
    return;
  }
#pragma unroll 1
  for (int row = threadIdx.x / S::kRowUnits; row < kStreamed; row += step) {
    const int64_t start = __shfl_sync(kAllLanes, lane_start, row);
    tile[S::place(row, unit)] = read_unit<State>(p, x, start, element);
  }
}

// Stationary rows of a warp as operands of tensor cores: registers hold one pass of the depth.
template <typename State, int kChunks>
struct Stationary {
  uint32_t a[2][kChunks][2][4];

  __device__ __forceinline__ void load(const ScoreProblem& p, const ScoreOperand& x,
                                       const int64_t (&starts)[4], int pass) {
    if (p.wide)
      load_with(p, starts, pass,
                [&](int64_t start, int element) { return read_wide<State>(p, x, start, element); });
    else
      load_with(p, starts, pass, [&](int64_t start, int element) {
        return read_narrow<State>(p, x, start, element);
      });
  }

  template <typename Read>
  __device__ __forceinline__ void load_with(const ScoreProblem& p, const int64_t (&starts)[4],
                                            int pass, const Read& read) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int element = (pass * kChunks + chunk) * kChunk + 8 * t;
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        const uint4 unit = read(starts[row], element);
        uint32_t (&to)[2][4] = a[row / 2][chunk];
        // The exclusive or puts each word into the register that a product wants, once: the
        // compiler would otherwise keep the units as they came and copy them before each product.
        to[0][row % 2] = unit.x ^ p.zero;
        to[0][2 + row % 2] = unit.y ^ p.zero;
        to[1][row % 2] = unit.z ^ p.zero;
        to[1][2 + row % 2] = unit.w ^ p.zero;
      }
    }
  }

  __device__ __forceinline__ void multiply(const ScoreProblem&, const ScoreOperand&,
                                           const int64_t (&)[4], int, const uint4* tile,
                                           Logits& logits) const {
    const int g = threadIdx.x % kWarpThreads / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 unit = tile[Stage<State, kChunks>::place(8 * j + g, 4 * chunk + t)];
        const uint32_t first[2] = {unit.x, unit.y}, second[2] = {unit.z, unit.w};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          State::multiply(logits[m][j], a[m][chunk][0], first);
          State::multiply(logits[m][j], a[m][chunk][1], second);
        }
      }
    }
  }
};

// The same for float32: both sides are read as they are needed, the stationary one from caches.
template <int kChunks>
struct Stationary<FloatState, kChunks> {
  __device__ __forceinline__ void load(const ScoreProblem&, const ScoreOperand&,
                                       const int64_t (&)[4], int) {}

  __device__ __forceinline__ void multiply(const ScoreProblem& p, const ScoreOperand& x,
                                           const int64_t (&starts)[4], int pass, const uint4* tile,
                                           Logits& logits) const {
    using S = Stage<FloatState, kChunks>;
    const int t = threadIdx.x % 4;
#pragma unroll 1
    for (int unit = 0; unit < S::kRowUnits; ++unit) {
      uint4 left[4];
#pragma unroll
      for (int row = 0; row < 4; ++row)
        left[row] = read_unit<FloatState>(p, x, starts[row], pass * S::kDepth + 4 * unit);
#pragma unroll
      for (int column = 0; column < 8; ++column) {
        const int j = column / 2, c = column % 2;
        const uint4 right = tile[S::place(8 * j + 2 * t + c, unit)];
#pragma unroll
        for (int row = 0; row < 4; ++row) {
          float& sum = logits[row / 2][j][2 * (row % 2) + c];
          sum = fmaf(__uint_as_float(left[row].x), __uint_as_float(right.x), sum);
          sum = fmaf(__uint_as_float(left[row].y), __uint_as_float(right.y), sum);
          sum = fmaf(__uint_as_float(left[row].z), __uint_as_float(right.z), sum);
          sum = fmaf(__uint_as_float(left[row].w), __uint_as_float(right.w), sum);
        }
      }
    }
  }
};

// Streams `tiles` tiles past the stationary rows of every warp. find(starts) finds the four of a
// thread, which must not be in the way of the first copies; start_at(tile) is where streamed row
// `lane` of a tile starts; copied(tile, slot) may add copies of its own to a stage; use(tile, slot,
// logits) gets the finished logits. Warps that are not `busy` copy only. kDeep: the depth takes
// several passes. All threads of a block call it together, with the same `tiles`.
template <typename State, int kChunks, bool kDeep, typename Find, typename Start, typename Copied,
          typename Use>
__device__ __forceinline__ void stream(const ScoreProblem& p, const ScoreOperand& stationary,
                                       const ScoreOperand& streamed, int tiles, bool busy,
                                       uint4* ring, const Find& find, const Start& start_at,
                                       const Copied& copied, const Use& use) {
  using S = Stage<State, kChunks>;
  constexpr int kAhead = State::kStages - 1;
  const int passes = kDeep ? p.passes : 1, stages = tiles * passes;
  const auto copy = [&](int s, int64_t start) {
    const int slot = s % State::kStages;
    copy_stage<State, kChunks>(p, streamed, ring + slot * S::kUnits, kDeep ? s % passes : 0, start);
    copied(s / passes, slot);
  };
  Stationary<State, kChunks> rows;
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s < stages) copy(s, start_at(s / passes));
    cp_async_commit();
  }
  int64_t starts[4];
  find(starts);
  if (!kDeep && busy) rows.load(p, stationary, starts, 0);
  Logits logits;
  for (int s = 0; s < stages; ++s) {
    const int pass = kDeep ? s % passes : 0, slot = s % State::kStages;
    cp_async_wait<kAhead - 1>();
    __syncthreads();  // this stage is there for all, and all are done with the one before
    if (s + kAhead < stages) copy(s + kAhead, start_at((s + kAhead) / passes));
    cp_async_commit();
    if (!busy) continue;
    if (pass == 0) {
#pragma unroll
      for (int i = 0; i < 32; ++i) logits[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }
    if (kDeep) rows.load(p, stationary, starts, pass);
    rows.multiply(p, stationary, starts, pass, ring + slot * S::kUnits, logits);
    if (pass + 1 < passes) continue;
    if (p.negative) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& logit = logits[i / 16][i / 4 % 4][i % 4];
        logit = -logit;
      }
    }
    use(s / passes, slot, logits);
  }
  cp_async_wait<0>();
  __syncthreads();  // the ring may be filled anew
}

}  // namespace erase_kernels
