// The elements of a segment in a block's registers, as order-preserving keys.
#pragma once

#include "cuda/device.cuh"

namespace erase_kernels {

constexpr uint32_t kZeroKey = 0x80000000u;
constexpr uint32_t kNanBits = 0x7fc00000u;  // the quiet NaN that the reference returns

// Unsigned key in the order of floats, as csrc/cpu/radix_select.h has it: -0 equals +0, every NaN
// is key 0.
__device__ __forceinline__ uint32_t order_key(uint32_t bits) {
  const float value = __fadd_rn(__uint_as_float(bits), 0.0f);  // -0 becomes +0, nothing else moves
  const uint32_t number = __float_as_uint(value);
  const uint32_t sign = static_cast<uint32_t>(static_cast<int32_t>(number) >> 31);
  return value != value ? 0u : number ^ (sign | 0x80000000u);
}

// Inverse of order_key.
__device__ __forceinline__ float key_value(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  return __uint_as_float(key == 0 ? kNanBits : bits);
}

// Part of a tile that a warp holds: consecutive rows of 32 elements, one register each. Short tiles
// have fewer rows, not fewer warps.
struct TileRows {
  int count;  // the same for all warps
  int first;  // element of the warp's first row
  int left;   // elements from this lane's first one to the tile's end
};

constexpr int kRowGroup = 4;  // rows that are not asked for one by one

template <typename Shape>
__device__ __forceinline__ TileRows rows_of(int elements) {
  const int rows = (elements + kWarpThreads * Shape::kWarps - 1) / (kWarpThreads * Shape::kWarps);
  TileRows result;
  result.count = (rows + kRowGroup - 1) / kRowGroup * kRowGroup;
  result.first = static_cast<int>(threadIdx.x) / kWarpThreads * result.count * kWarpThreads;
  result.left = elements - result.first - static_cast<int>(threadIdx.x) % kWarpThreads;
  return result;
}

// All loads under way at once. After the end is NaN: lowest in the order, last in place.
template <typename Shape>
__device__ __forceinline__ void load_bits(uint32_t (&bits)[Shape::kKeys], const float* tile,
                                          const TileRows& rows) {
  const float* mine = tile + rows.first + threadIdx.x % kWarpThreads;
#pragma unroll
  for (int row = 0; row < Shape::kKeys; ++row) {
    if (row % kRowGroup == 0 && row >= rows.count) break;
    const bool held = row * kWarpThreads < rows.left;
    bits[row] = held ? __float_as_uint(__ldg(mine + row * kWarpThreads)) : kNanBits;
  }
}

template <typename Shape>
__device__ __forceinline__ void load_keys(uint32_t (&keys)[Shape::kKeys], const float* tile,
                                          const TileRows& rows) {
  load_bits<Shape>(keys, tile, rows);
#pragma unroll
  for (int row = 0; row < Shape::kKeys; ++row) {
    if (row % kRowGroup == 0 && row >= rows.count) break;
    keys[row] = order_key(keys[row]);
  }
}

}  // namespace erase_kernels
