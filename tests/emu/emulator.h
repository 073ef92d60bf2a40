// A CUDA thread block on the CPU. Kernel bodies of csrc/cuda are compiled with this in place of
// nvcc's own declarations. Every thread is a fiber that runs until it waits: at a block barrier, or
// for the other lanes of a warp operation. Which thread runs next is chosen from outside: the first
// that can, the last that can, or any of them; so warps run far ahead of each other, and a missing
// barrier shows as a result that depends on the order. A barrier that not every thread reaches, a
// lane that is missing from its mask, and waiting that never ends throw.
// One block runs at a time, on one thread of the host. Memory ordering between blocks is not
// emulated, and neither are times. Between two of its waits a thread is not interrupted: plain
// `place += 1` by several threads looks right here, and is not.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#include "intrinsics.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

struct Site {
  const char* file;
  int line;
};

constexpr size_t kPayloadBytes = 48;  // of a lane in a warp operation: the fragments of a product
constexpr size_t kCommonBytes = 512;  // what the lanes compute together: a product of 16x8
constexpr unsigned char kPoison = 0xcd;  // in shared memory before it is written

extern uint64_t block_serial;  // a new one for every block that runs
extern int current_thread;     // of the block

// Runs a grid of blocks; `body` is what one thread does. Throws std::runtime_error.
void run(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
         const std::function<void()>& body);
void ask_for_shared(bool asked);  // for the next launch: more than 48 KB, static and dynamic
void* dynamic_shared();
size_t dynamic_shared_bytes();
// Poisons a static variable of a block that begins, and counts its bytes.
void fresh_shared(Site site, void* variable, size_t bytes);
EMULATED_NOT_WATCHED inline void begin_shared(Site site, uint64_t& fresh_in, void* variable,
                                              size_t bytes) {
  if (fresh_in == block_serial) return;
  fresh_in = block_serial;
  fresh_shared(site, variable, bytes);
}

void sync_threads(Site site);
int sync_threads_count(Site site, int predicate);
[[noreturn]] void fail(Site site, const char* what);
inline int lane_id() { return current_thread % warpSize; }

// One operation of the lanes in `mask`: each deposits its payload and sees those of the others.
class Exchange {
 public:
  Exchange(Site site, const char* what, uint32_t mask, const void* mine, size_t bytes,
           bool vote = false);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  template <typename T>
  EMULATED_NOT_WATCHED T of(int lane) const {
    static_assert(sizeof(T) <= kPayloadBytes, "too much for one lane");
    T value;
    std::memcpy(&value, payloads_[lane], sizeof(T));
    return value;
  }
  bool has(int lane) const { return lane >= 0 && lane < warpSize && (mask_ >> lane & 1u) != 0; }
  uint32_t votes() const;
  // What `compute` makes of all payloads: the same for every lane, so the first one computes it.
  template <typename R, typename Compute>
  EMULATED_NOT_WATCHED R common(Compute compute) const {
    static_assert(sizeof(R) <= kCommonBytes && std::is_trivially_copyable<R>::value, "too much");
    if (first_to_ask()) new (common_) R(compute());
    return *static_cast<const R*>(common_);
  }

 private:
  bool first_to_ask() const;
  void* collective_ = nullptr;
  uint32_t mask_;
  const unsigned char (*payloads_)[kPayloadBytes] = nullptr;
  void* common_ = nullptr;
};

template <typename T>
T shuffle(Site site, const char* what, uint32_t mask, T value, int source, bool inside) {
  Exchange lanes(site, what, mask, &value, sizeof(T));
  if (!inside) return value;
  if (!lanes.has(source)) fail(site, "a shuffle reads a lane that is not in its mask");
  return lanes.of<T>(source);
}

inline void check_shuffle(Site site, unsigned distance, int width) {
  if (width < 1 || width > warpSize || (width & (width - 1)) != 0)
    fail(site, "a shuffle's width must be a power of two up to 32");
  if (distance >= static_cast<unsigned>(warpSize)) fail(site, "a shuffle by a warp or more");
}
template <typename T>
T shfl(Site site, uint32_t mask, T value, int source, int width = warpSize) {
  check_shuffle(site, 0, width);
  const int first = lane_id() / width * width;
  return shuffle(site, "__shfl_sync", mask, value, first + (source & (width - 1)), true);
}
template <typename T>
T shfl_up(Site site, uint32_t mask, T value, unsigned delta, int width = warpSize) {
  check_shuffle(site, delta, width);
  const int lane = lane_id(), distance = static_cast<int>(delta);
  return shuffle(site, "__shfl_up_sync", mask, value, lane - distance, lane % width >= distance);
}
template <typename T>
T shfl_down(Site site, uint32_t mask, T value, unsigned delta, int width = warpSize) {
  check_shuffle(site, delta, width);
  const int lane = lane_id(), distance = static_cast<int>(delta);
  return shuffle(site, "__shfl_down_sync", mask, value, lane + distance,
                 lane % width + distance < width);
}
template <typename T>
T shfl_xor(Site site, uint32_t mask, T value, int bits, int width = warpSize) {
  check_shuffle(site, static_cast<unsigned>(bits), width);
  const int lane = lane_id(), other = lane ^ bits;
  return shuffle(site, "__shfl_xor_sync", mask, value, other, other / width <= lane / width);
}

inline uint32_t vote(Site site, const char* what, uint32_t mask, bool mine) {
  return Exchange(site, what, mask, nullptr, 0, mine).votes();
}
inline uint32_t ballot(Site site, uint32_t mask, int predicate) {
  return vote(site, "__ballot_sync", mask, predicate != 0);
}
inline int any(Site site, uint32_t mask, int predicate) {
  return vote(site, "__any_sync", mask, predicate != 0) != 0;
}
inline int all(Site site, uint32_t mask, int predicate) {
  return vote(site, "__all_sync", mask, predicate == 0) == 0;
}
struct WarpBarrier {
  Site site;
  void operator()(uint32_t mask = 0xffffffffu) const { vote(site, "__syncwarp", mask, false); }
};
template <typename T>
uint32_t match_any(Site site, uint32_t mask, T value) {
  Exchange lanes(site, "__match_any_sync", mask, &value, sizeof(T));
  uint32_t same = 0;
  for (int lane = 0; lane < warpSize; ++lane)
    if (lanes.has(lane) && lanes.of<T>(lane) == value) same |= 1u << lane;
  return same;
}
template <typename T, typename Combine>
T reduce(Site site, const char* what, uint32_t mask, T value, Combine combine) {
  Exchange lanes(site, what, mask, &value, sizeof(T));
  return lanes.common<T>([&] {
    int lane = __builtin_ctz(mask);
    T result = lanes.of<T>(lane);
    while (++lane < warpSize)
      if (lanes.has(lane)) result = combine(result, lanes.of<T>(lane));
    return result;
  });
}
template <typename T>
T reduce_add(Site site, uint32_t mask, T value) {
  return reduce(site, "__reduce_add_sync", mask, value, [](T a, T b) {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  });
}
template <typename T>
T reduce_min(Site site, uint32_t mask, T value) {
  return reduce(site, "__reduce_min_sync", mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <typename T>
T reduce_max(Site site, uint32_t mask, T value) {
  return reduce(site, "__reduce_max_sync", mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
T reduce_or(Site site, uint32_t mask, T value) {
  return reduce(site, "__reduce_or_sync", mask, value, [](T a, T b) { return a | b; });
}
template <typename T>
T reduce_and(Site site, uint32_t mask, T value) {
  return reduce(site, "__reduce_and_sync", mask, value, [](T a, T b) { return a & b; });
}

}  // namespace emulator

#define EMULATED_SITE \
  ::emulator::Site { __FILE__, __LINE__ }
#define __syncthreads() ::emulator::sync_threads(EMULATED_SITE)
#define __syncthreads_count(...) ::emulator::sync_threads_count(EMULATED_SITE, __VA_ARGS__)
#define __syncthreads_or(...) (::emulator::sync_threads_count(EMULATED_SITE, __VA_ARGS__) != 0)
#define __syncthreads_and(...) (::emulator::sync_threads_count(EMULATED_SITE, !(__VA_ARGS__)) == 0)
#define __syncwarp(...) (::emulator::WarpBarrier{EMULATED_SITE}(__VA_ARGS__))
#define __shfl_sync(...) ::emulator::shfl(EMULATED_SITE, __VA_ARGS__)
#define __shfl_up_sync(...) ::emulator::shfl_up(EMULATED_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) ::emulator::shfl_down(EMULATED_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...) ::emulator::shfl_xor(EMULATED_SITE, __VA_ARGS__)
#define __ballot_sync(...) ::emulator::ballot(EMULATED_SITE, __VA_ARGS__)
#define __any_sync(...) ::emulator::any(EMULATED_SITE, __VA_ARGS__)
#define __all_sync(...) ::emulator::all(EMULATED_SITE, __VA_ARGS__)
#define __match_any_sync(...) ::emulator::match_any(EMULATED_SITE, __VA_ARGS__)
#define __reduce_add_sync(...) ::emulator::reduce_add(EMULATED_SITE, __VA_ARGS__)
#define __reduce_min_sync(...) ::emulator::reduce_min(EMULATED_SITE, __VA_ARGS__)
#define __reduce_max_sync(...) ::emulator::reduce_max(EMULATED_SITE, __VA_ARGS__)
#define __reduce_or_sync(...) ::emulator::reduce_or(EMULATED_SITE, __VA_ARGS__)
#define __reduce_and_sync(...) ::emulator::reduce_and(EMULATED_SITE, __VA_ARGS__)
