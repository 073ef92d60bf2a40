// Stack switching for x86-64, and what AddressSanitizer must be told about it.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee's registers on the present stack, and continues on another one.
extern "C" void erase_emulator_switch(void** from, void* to);
#if !defined(__x86_64__)
#error "the emulator switches stacks with x86-64 instructions"
#endif
asm(R"(
.text
.globl erase_emulator_switch
.hidden erase_emulator_switch
.type erase_emulator_switch, @function
erase_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size erase_emulator_switch, .-erase_emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kStackBytes = 256 << 10;
// Stacks begin at different places of their pages, or all would share the same few cache lines.
constexpr size_t kShiftBytes = 64 << 10, kShiftStep = 7 * 64;
constexpr size_t kMappedBytes = kPageBytes + kStackBytes + kShiftBytes;
constexpr int kSavedRegisters = 6;

struct Host {  // the stack that the grid was launched from
  void* pointer = nullptr;
  void* fake = nullptr;
  const void* stack = nullptr;
  size_t bytes = 0;
  bool leaving = false;
} host;

char* new_stack() {
  void* memory = mmap(nullptr, kMappedBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPageBytes, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

// Tells the sanitizer that the stack at `to` comes next; null as `fake`: the present one is over.
void leave([[maybe_unused]] void** fake, [[maybe_unused]] const void* to,
           [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, to, bytes);
#endif
}

}  // namespace

void arrived([[maybe_unused]] void* fake) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
  if (host.leaving) {
    host.stack = stack;
    host.bytes = bytes;
  }
#endif
  host.leaving = false;
}

void Fiber::begin(void (*entry)(), int number) {
  if (memory_ == nullptr) memory_ = new_stack();
  const size_t shift = static_cast<size_t>(number) * kShiftStep % kShiftBytes;
  char* top = memory_ + kMappedBytes - shift;
#ifdef __SANITIZE_ADDRESS__
  const size_t unknown = clean_ ? kPageBytes : kMappedBytes - kPageBytes - shift;
  ASAN_UNPOISON_MEMORY_REGION(top - unknown, unknown);  // of frames that were left behind
#endif
  // A function starts 8 bytes off a multiple of 16, as if it had been called; from nowhere.
  void** slots = reinterpret_cast<void**>(top) - 2;
  *--slots = nullptr;
  *--slots = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--slots = nullptr;
  pointer_ = slots;
  fake_ = nullptr;
  clean_ = false;
}

void to_fiber(Fiber* from, Fiber& to, bool last) {
  host.leaving = from == nullptr;
  void*& fake = from == nullptr ? host.fake : from->fake_;
  leave(last ? nullptr : &fake, to.memory_ + kPageBytes, kMappedBytes - kPageBytes);
  erase_emulator_switch(from == nullptr ? &host.pointer : &from->pointer_, to.pointer_);
  arrived(fake);
}

void to_host(Fiber& from, bool last) {
  leave(last ? nullptr : &from.fake_, host.stack, host.bytes);
  erase_emulator_switch(&from.pointer_, host.pointer);
  arrived(from.fake_);
}

}  // namespace emulator
