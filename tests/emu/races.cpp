// Two accesses of different threads to one byte, one of them a write, are a race unless something
// orders them: a block barrier between, a warp operation of both lanes between (vector clocks of a
// warp's lanes), or both being atomic. Blocks are not ordered at all, but for a fence: whoever has
// called __threadfence may read what other blocks wrote (a counter says who is last). Several
// threads may write the same value.
#include "races.h"

#ifdef ERASE_EMULATED_RACES

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <sstream>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emulator.h"

namespace emulator {
namespace {

constexpr size_t kPageBytes = 4096;

struct Event {
  uint32_t launch = 0, block = 0, barrier = 0, clock = 0;
  int16_t thread = -1;
  bool atomic = false, shared = false;
  const void* code = nullptr;
};
struct Byte {
  Event write;
  Event reads[2];  // the latest of two threads: enough for most
};
struct Rewrite {  // of a byte that another thread wrote; a race if it changes it
  uintptr_t address;
  unsigned char content;
  Event before, now;
};
using Page = std::array<Byte, kPageBytes>;
using Clocks = std::array<std::array<uint32_t, warpSize>, warpSize>;

struct Races {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  std::vector<Clocks> clocks;  // [warps]: what each lane knows of each other one
  uint32_t launch = 0, block = 0, barrier = 0;
  bool running = false, fenced = false;
  std::string found;
  std::vector<Rewrite> rewrites;                            // of the last access
  std::vector<std::pair<const char*, const char*>> shared;  // ranges
} races;

const char* place_of_stack() { return static_cast<const char*>(__builtin_frame_address(0)); }

bool on_my_stack(const void* place) {
  constexpr ptrdiff_t kStackBytes = 320 << 10;
  const ptrdiff_t above = static_cast<const char*>(place) - place_of_stack();
  return above > -kStackBytes && above < kStackBytes;
}

bool is_shared(const void* place) {
  const char* byte = static_cast<const char*>(place);
  for (const auto& [first, last] : races.shared)
    if (byte >= first && byte < last) return true;
  return false;
}

bool ordered(const Event& before) {
  if (before.thread < 0 || before.launch != races.launch) return true;
  if (before.block != races.block) return before.shared || races.fenced;
  if (before.barrier != races.barrier || before.thread == current_thread) return true;
  if (before.thread / warpSize != current_thread / warpSize) return false;
  const Clocks& clocks = races.clocks[static_cast<size_t>(current_thread / warpSize)];
  return clocks[static_cast<size_t>(lane_id())][static_cast<size_t>(before.thread % warpSize)] >=
         before.clock;
}

std::string line_of(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return "?";
  std::ostringstream command;
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  command << "addr2line -s -e '" << info.dli_fname << "' 0x" << std::hex << offset;
  FILE* answer = popen(command.str().c_str(), "r");
  char line[256] = "?";
  if (answer != nullptr) {
    if (std::fgets(line, sizeof(line), answer) == nullptr) line[0] = '?';
    pclose(answer);
  }
  std::string text = line;
  return text.substr(0, text.find_first_of(" \n"));
}

void report(const Event& before, const char* what, const Event& now) {
  if (!races.found.empty()) return;
  std::ostringstream text;
  text << "a race: " << what << " of threads " << before.thread << " (" << line_of(before.code)
       << ") and " << now.thread << " (" << line_of(now.code) << ")";
  if (before.block != now.block) text << " of different blocks";
  races.found = text.str();
}

unsigned char content(uintptr_t address) {
  return *reinterpret_cast<const unsigned char*>(address);
}

// The access before has happened by now.
void check_rewrites() {
  for (const Rewrite& rewrite : races.rewrites)
    if (content(rewrite.address) != rewrite.content) report(rewrite.before, "writes", rewrite.now);
  races.rewrites.clear();
}

void one_byte(uintptr_t address, Access access, const Event& now) {
  std::unique_ptr<Page>& page = races.pages[address / kPageBytes];
  if (page == nullptr) page = std::make_unique<Page>();
  Byte& byte = (*page)[address % kPageBytes];
  const bool both_atomic = access == Access::kAtomic && byte.write.atomic;
  if (!both_atomic && !ordered(byte.write)) {
    if (access == Access::kWrite && !byte.write.atomic)
      races.rewrites.push_back({address, content(address), byte.write, now});
    else
      report(byte.write, access == Access::kRead ? "write and read" : "write and update", now);
  }
  if (access == Access::kRead) {
    Event& first = byte.reads[0];
    (first.thread == now.thread || ordered(first) ? first : byte.reads[1]) = now;
    return;
  }
  for (const Event& read : byte.reads)
    if (!ordered(read)) report(read, "read and write", now);
  byte.write = now;
}

void access_from(const void* code, const void* place, size_t bytes, Access access) {
  if (!races.running || on_my_stack(place)) return;
  check_rewrites();
  const Clocks& clocks = races.clocks[static_cast<size_t>(current_thread / warpSize)];
  const size_t lane = static_cast<size_t>(lane_id());
  const Event now{races.launch,
                  races.block,
                  races.barrier,
                  clocks[lane][lane],
                  static_cast<int16_t>(current_thread),
                  access == Access::kAtomic,
                  is_shared(place),
                  code};
  const uintptr_t first = reinterpret_cast<uintptr_t>(place);
  for (uintptr_t address = first; address < first + bytes; ++address)
    one_byte(address, access, now);
}

}  // namespace

void races_begin_launch() {
  races.pages.clear();
  races.rewrites.clear();
  races.found.clear();
  races.block = 0;
  ++races.launch;
  races.running = true;
}

void races_begin_block(int threads) {
  check_rewrites();
  ++races.block;
  races.barrier = 0;
  races.fenced = false;
  races.shared.clear();
  races.clocks.assign(static_cast<size_t>((threads + warpSize - 1) / warpSize), {});
  for (Clocks& clocks : races.clocks)
    for (size_t lane = 0; lane < warpSize; ++lane) clocks[lane][lane] = 1;
}

void races_block_barrier() {
  check_rewrites();
  ++races.barrier;
}

void races_meeting(int warp, uint32_t mask) {
  check_rewrites();
  Clocks& clocks = races.clocks[static_cast<size_t>(warp)];
  std::array<uint32_t, warpSize> known{};
  for (size_t lane = 0; lane < warpSize; ++lane)
    if (mask >> lane & 1u)
      for (size_t other = 0; other < warpSize; ++other)
        known[other] = std::max(known[other], clocks[lane][other]);
  for (size_t lane = 0; lane < warpSize; ++lane)
    if (mask >> lane & 1u) {
      clocks[lane] = known;
      ++clocks[lane][lane];
    }
}

void races_access(const void* place, size_t bytes, Access access) {
  access_from(__builtin_return_address(0), place, bytes, access);
}

void races_shared(const void* place, size_t bytes) {
  const char* first = static_cast<const char*>(place);
  races.shared.emplace_back(first, first + bytes);
}

void races_fence() { races.fenced = true; }

std::string races_found() {
  check_rewrites();
  races.running = false;
  return races.found;
}

}  // namespace emulator

// What the compiler calls. Volatile accesses are accesses.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define EMULATED_ACCESS(name, bytes, access)                           \
  void name(void* place) {                                             \
    ::emulator::access_from(__builtin_return_address(0), place, bytes, \
                            ::emulator::Access::access);               \
  }
#define EMULATED_ACCESSES(bytes)                               \
  EMULATED_ACCESS(__tsan_read##bytes, bytes, kRead)            \
  EMULATED_ACCESS(__tsan_write##bytes, bytes, kWrite)          \
  EMULATED_ACCESS(__tsan_volatile_read##bytes, bytes, kRead)   \
  EMULATED_ACCESS(__tsan_volatile_write##bytes, bytes, kWrite) \
  EMULATED_ACCESS(__tsan_unaligned_read##bytes, bytes, kRead)  \
  EMULATED_ACCESS(__tsan_unaligned_write##bytes, bytes, kWrite)
EMULATED_ACCESSES(1)
EMULATED_ACCESSES(2)
EMULATED_ACCESSES(4)
EMULATED_ACCESSES(8)
EMULATED_ACCESSES(16)
// Of variables that are initialised once, and of shared pointers.
uint8_t __tsan_atomic8_load(const volatile uint8_t* place, int) {
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t* place, uint32_t value, int) {
  return __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST);
}
void __tsan_read_range(void* place, size_t bytes) {
  ::emulator::access_from(__builtin_return_address(0), place, bytes, ::emulator::Access::kRead);
}
void __tsan_write_range(void* place, size_t bytes) {
  ::emulator::access_from(__builtin_return_address(0), place, bytes, ::emulator::Access::kWrite);
}
}

#endif
