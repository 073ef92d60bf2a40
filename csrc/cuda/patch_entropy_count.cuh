// What patch_entropy and patch_entropy_from_pixels share: gray levels, counters, entropies.
//
// Parallelism: a block owns the counters of its tile, 256 per cell in shared memory, and every
// thread adds its pixels with atomics that return nothing; the hardware merges increments of one
// address by a warp. Cells are padded by four counters, so that one level of neighbouring cells is
// in different banks. Then each warp sums table entries over the counters of whole cells, integers,
// in any order. Considered: a copy per warp or per lane (the sum over copies costs more than the
// conflicts), bit-plane products on tensor cores (1.7 times the instructions), match_any (slow).
#pragma once

#include "cuda/device.cuh"
#include "cuda/patch_entropy_plan.h"

namespace erase_kernels {

constexpr uint32_t kGrayLevels = 256;
constexpr uint32_t kCellCounters = kGrayLevels + 4;  // of 32 banks; multiple of 16 bytes
constexpr float kEntropyUnit = 0x1p-40f;             // table entries count units of 2^-40 nats

// ITU-R BT.601. Every product and sum is rounded by itself: see patch_entropy.py.
constexpr float kLumaRed = 0.299f;
constexpr float kLumaGreen = 0.587f;
constexpr float kLumaBlue = 0.114f;
constexpr float kMaxLevel = 255.0f;

constexpr float kUnitFloat = 0x1p23f;        // from here to 2^24, floats are the integers,
constexpr uint32_t kUnitBits = 0x4b000000u;  // and their bits these plus the integer
constexpr int kHalfBits = 26;                // of an entropy sum: 32 lower halves fit 32 bits

inline size_t counter_bytes(uint32_t cells) { return cells * kCellCounters * sizeof(uint32_t); }

// Byte `index` of a word as a float, exactly.
__device__ __forceinline__ float byte_float(uint32_t word, uint32_t index) {
  return __fsub_rn(__uint_as_float(__byte_perm(word, kUnitBits, 0x7650u | index)), kUnitFloat);
}

// kUnitBits plus floor(y), for y in 0..255.
__device__ __forceinline__ uint32_t floor_bits(float y) {
  return __float_as_uint(__fadd_rd(y, kUnitFloat));
}

__device__ __forceinline__ float luma(float red, float green, float blue) {
  const float sum = __fadd_rn(__fmul_rn(kLumaRed, red), __fmul_rn(kLumaGreen, green));
  return __fadd_rn(sum, __fmul_rn(kLumaBlue, blue));
}

// From where count_bits counts the pixels of a cell; `counters` is a shared_address.
__device__ __forceinline__ uint32_t counter_base(uint32_t counters, uint32_t cell) {
  return counters + (cell * kCellCounters - kUnitBits) * static_cast<uint32_t>(sizeof(uint32_t));
}

// One more pixel of the level whose floor_bits these are.
__device__ __forceinline__ void count_bits(uint32_t base, uint32_t bits) {
  shared_increment(base + bits * static_cast<uint32_t>(sizeof(uint32_t)));
}

// Begins the tile's counters at 0; a barrier must follow.
__device__ __forceinline__ void clear_counters(uint32_t* counters, uint32_t cells) {
  uint4* words = reinterpret_cast<uint4*>(counters);
  const uint32_t count = cells * (kCellCounters / 4);
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) words[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ int64_t table_entry(const int64_t* table, uint32_t count) {
  return count == 0 ? 0 : __ldg(table + count);  // table[0] is 0, and most counters are
}

// The sum over a warp; it and the values are below 2^57 in magnitude.
__device__ __forceinline__ int64_t warp_sum(int64_t value) {
  const uint32_t low = static_cast<uint32_t>(value) & ((1u << kHalfBits) - 1);
  const int32_t high = static_cast<int32_t>(value >> kHalfBits);
  const uint32_t lows = __reduce_add_sync(kAllLanes, low);
  const int32_t highs = __reduce_add_sync(kAllLanes, high);
  return highs * (int64_t{1} << kHalfBits) + lows;
}

// Entropies of the tile's cells, one warp after the other taking one. A barrier must come before.
__device__ __forceinline__ void store_entropies(const uint32_t* counters, uint32_t cells,
                                                const int64_t* table, uint32_t pixels,
                                                float* entropy) {
  const uint32_t lane = threadIdx.x % kWarpThreads, warps = blockDim.x / kWarpThreads;
  for (uint32_t cell = threadIdx.x / kWarpThreads; cell < cells; cell += warps) {
    const uint4* words = reinterpret_cast<const uint4*>(counters + cell * kCellCounters) + lane;
    const uint4 low = words[0], high = words[kWarpThreads];
    int64_t sum = table_entry(table, low.x) + table_entry(table, low.y);
    sum += table_entry(table, low.z) + table_entry(table, low.w);
    sum += table_entry(table, high.x) + table_entry(table, high.y);
    sum += table_entry(table, high.z) + table_entry(table, high.w);
    sum = warp_sum(sum);
    if (lane == 0) entropy[cell] = static_cast<float>(__ldg(table + pixels) - sum) * kEntropyUnit;
  }
}

}  // namespace erase_kernels
