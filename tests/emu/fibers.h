// Stacks that take turns on one thread of the host. Nothing here knows about CUDA.
#pragma once

#include <cstddef>

namespace emulator {

// A stack of its own with a guard page below it, kept for the next use.
class Fiber {
 public:
  // The next switch to it calls `entry`, which must not return. `number` tells the fibers apart;
  // whatever ran here before is forgotten.
  void begin(void (*entry)(), int number);
  // What runs here has ended, and left no frames behind but that of `entry`.
  void ended() { clean_ = true; }

 private:
  friend void to_fiber(Fiber* from, Fiber& to, bool last);
  friend void to_host(Fiber& from, bool last);
  friend void arrived(void* fake);

  char* memory_ = nullptr;
  void* pointer_ = nullptr;  // its stack's, while it does not run
  void* fake_ = nullptr;     // the sanitizer's
  bool clean_ = true;
};

// Continues `to`; returns when something switches back to `from`, the host's own stack if null.
// After `last`, nothing will.
void to_fiber(Fiber* from, Fiber& to, bool last = false);
void to_host(Fiber& from, bool last = false);
// First call of every entry function; `fake` is null there.
void arrived(void* fake = nullptr);

}  // namespace emulator
