// The scheduler of a block's threads, and where they wait; emulator.h says what they stand for.
#include "emulator.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"
#include "order.h"
#include "scheduler.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

uint64_t block_serial = 0;
int current_thread = 0;

namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / warpSize;
constexpr size_t kStaticBytes = 48 << 10;  // of shared memory, CUDA Programming Guide
constexpr size_t kSharedBytes = 99 << 10;  // static and dynamic, sm_120; others have more
constexpr size_t kGuardBytes = 4 << 10;    // behind dynamic shared memory
constexpr unsigned char kGuard = 0xa7;

struct Thread {
  Fiber fiber;
  uint3 index{};
  Waiting waiting = Waiting::kNo;
  Site site{};
  const char* what = "";
};

struct State {
  std::vector<Thread> threads;
  uint32_t ready[kMostWarps] = {};  // lanes that can run
  uint32_t ready_warps = 0;
  int warp = 0;  // of the thread that runs
  std::unique_ptr<unsigned char[]> shared;
  size_t shared_bytes = 0, static_bytes = 0;
  bool asked = false;  // the launch asked for more shared memory than the usual
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  const char* kernel = "";
  int count = 0, alive = 0;
  int votes = 0, result = 0;  // of a block barrier
  Order order;
  uint64_t launches = 0;
} state;

std::mutex one_grid;

Thread& thread(int index) { return state.threads[static_cast<size_t>(index)]; }

// Takes the thread that runs next; -1 if all wait.
int take() {
  if (state.ready_warps == 0) return -1;
  state.warp = state.order.warp(state.ready_warps, state.warp);
  uint32_t& ready = state.ready[state.warp];
  const int lane = state.order.lane(ready);
  ready &= ~(1u << lane);
  if (ready == 0) state.ready_warps &= ~(1u << state.warp);
  return state.warp * warpSize + lane;
}

// Runs another thread, or goes back to the host when there is none; returns when its turn comes.
void yield(bool last) {
  Thread& mine = thread(current_thread);
  const int next = state.error ? -1 : take();
  if (next < 0) return to_host(mine.fiber, last);
  current_thread = next;
  Thread& other = thread(next);
  threadIdx = other.index;
  if (&other != &mine) to_fiber(&mine.fiber, other.fiber, last);
}

void thread_main() {
  arrived();
  try {
    (*state.body)();
  } catch (...) {
    state.error = std::current_exception();
  }
  Thread& mine = thread(current_thread);
  mine.waiting = Waiting::kDone;
  mine.fiber.ended();
  --state.alive;
  yield(true);
}

const char* short_name(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash == nullptr ? file : slash + 1;
}

// What every thread waits for, threads with the same reason together.
std::string describe_waiting() {
  std::ostringstream text;
  text << state.kernel << ": threads wait for ever:";
  for (int i = 0, end = 0; i < state.count; i = end) {
    const Thread& first = thread(i);
    const bool done = first.waiting == Waiting::kDone;
    for (end = i + 1; end < state.count; ++end) {
      const Thread& next = thread(end);
      if (next.waiting != first.waiting || (!done && !same_site(next.site, first.site))) break;
    }
    text << " [" << i << ", " << end << ") ";
    if (done)
      text << "returned;";
    else
      text << "at " << first.what << " " << short_name(first.site.file) << ":" << first.site.line
           << ";";
  }
  return text.str();
}

// Lets everybody go if every thread that has not returned waits at one and the same barrier.
void release_barrier() {
  const Thread* first = nullptr;
  for (int i = 0; i < state.count; ++i) {
    const Thread& each = thread(i);
    if (each.waiting == Waiting::kDone) continue;
    if (first == nullptr) first = &each;
    if (each.waiting != Waiting::kBlock || !same_site(each.site, first->site))
      throw std::runtime_error(describe_waiting());
  }
  races_block_barrier();
  state.result = state.votes;
  state.votes = 0;
  for (int i = 0; i < state.count; ++i)
    if (thread(i).waiting == Waiting::kBlock) make_ready(i);
}

void check_guard() {
  const unsigned char* guard = state.shared.get() + state.shared_bytes;
  if (std::any_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != kGuard; }))
    throw std::runtime_error(std::string(state.kernel) +
                             ": something was written behind dynamic shared memory");
}

void begin_block() {
  ++block_serial;
  state.static_bytes = 0;
#ifdef __SANITIZE_ADDRESS__
  state.shared.reset(new unsigned char[state.shared_bytes]);  // has the sanitizer's own guard
#else
  std::memset(state.shared.get() + state.shared_bytes, kGuard, kGuardBytes);
#endif
  std::memset(state.shared.get(), kPoison, state.shared_bytes);
  begin_exchanges(state.count);
  races_begin_block(state.count);
  races_shared(state.shared.get(), state.shared_bytes);
  std::fill(std::begin(state.ready), std::end(state.ready), 0u);
  state.ready_warps = 0;
  state.warp = 0;
  state.votes = 0;
  state.alive = state.count;
  for (int i = 0; i < state.count; ++i) {
    thread(i).fiber.begin(&thread_main, i);
    make_ready(i);
  }
}

void run_block() {
  begin_block();
  for (;;) {
    state.order.choose_pace();
    current_thread = take();
    threadIdx = thread(current_thread).index;
    to_fiber(nullptr, thread(current_thread).fiber);
    if (state.error) std::rethrow_exception(state.error);
    if (state.alive == 0) break;
    release_barrier();
  }
#ifndef __SANITIZE_ADDRESS__
  check_guard();
#endif
}

void prepare(const char* name, dim3 grid, dim3 block, size_t shared_bytes) {
  constexpr unsigned kMostGrid = 65535, kMostGridX = 0x7fffffffu, kMostBlockZ = 64;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (block.x > kMostThreads || block.y > kMostThreads || block.z > kMostBlockZ || threads == 0 ||
      threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMostGridX ||
      grid.y > kMostGrid || grid.z > kMostGrid)
    throw std::runtime_error(std::string(name) + ": a grid or block that CUDA refuses");
  if (shared_bytes > kSharedBytes)
    throw std::runtime_error(std::string(name) + ": more shared memory than every device has");
  blockDim = block;
  gridDim = grid;
  state.kernel = name;
  state.error = nullptr;
  state.count = static_cast<int>(threads);
  if (state.threads.size() < threads) state.threads.resize(threads);
  for (int i = 0; i < state.count; ++i) {
    const unsigned index = static_cast<unsigned>(i);
    thread(i).index = {index % block.x, index / block.x % block.y, index / (block.x * block.y)};
  }
  state.shared_bytes = shared_bytes;
  state.shared.reset(new unsigned char[shared_bytes + kGuardBytes]);
  state.order.begin(name, grid, block, shared_bytes);
}

}  // namespace

void make_ready(int index) {
  Thread& which = thread(index);
  which.waiting = Waiting::kNo;
  state.ready[index / warpSize] |= 1u << index % warpSize;
  state.ready_warps |= 1u << index / warpSize;
}

void wait_as(Waiting reason, Site site, const char* what) {
  Thread& mine = thread(current_thread);
  mine.waiting = reason;
  mine.site = site;
  mine.what = what;
  yield(false);
}

void run(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
         const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_grid);
  prepare(name, grid, block, shared_bytes);
  state.body = &body;
  ++state.launches;
  races_begin_launch();
  for (const uint3 index : state.order.blocks(grid)) {
    blockIdx = index;
    run_block();
  }
  const std::string race = races_found();
  if (!race.empty()) throw std::runtime_error(std::string(name) + ": " + race);
}

void ask_for_shared(bool asked) { state.asked = asked; }

void* dynamic_shared() { return state.shared.get(); }

size_t dynamic_shared_bytes() { return state.shared_bytes; }

void fresh_shared(Site site, void* variable, size_t bytes) {
  state.static_bytes += bytes;
  if (state.static_bytes > kStaticBytes || state.static_bytes + state.shared_bytes > kSharedBytes)
    fail(site, "more shared memory than every device has");
  if (!state.asked && state.static_bytes + state.shared_bytes > kStaticBytes)
    fail(site, "more shared memory than a launch gets without asking");
  races_shared(variable, bytes);
  std::memset(variable, kPoison, bytes);
}

void fail(Site site, const char* what) {
  std::ostringstream text;
  text << state.kernel << ", thread " << current_thread << ", " << short_name(site.file) << ":"
       << site.line << ": " << what;
  throw std::runtime_error(text.str());
}

void sync_threads(Site site) { wait_as(Waiting::kBlock, site, "__syncthreads"); }

int sync_threads_count(Site site, int predicate) {
  state.votes += predicate != 0;
  wait_as(Waiting::kBlock, site, "__syncthreads with a vote");
  return state.result;
}

}  // namespace emulator

// "forward", "reverse" or "shuffled": in which order threads and blocks run from now on.
extern "C" __attribute__((visibility("default"))) int erase_emulator_order(const char* name,
                                                                           uint64_t seed) {
  const std::lock_guard<std::mutex> lock(emulator::one_grid);
  return emulator::state.order.set(name, seed) ? 0 : 1;
}

// Kernels launched so far.
extern "C" __attribute__((visibility("default"))) uint64_t erase_emulator_launches() {
  return emulator::state.launches;
}
