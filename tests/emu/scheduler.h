// Between the scheduler and the warp operations of the emulator.
#pragma once

#include "emulator.h"

namespace emulator {

enum class Waiting { kNo, kBlock, kWarp, kDone };

// Lets others run until somebody makes the present thread ready.
void wait_as(Waiting reason, Site site, const char* what);
void make_ready(int thread);
// Of a block that begins.
void begin_exchanges(int threads);

inline bool same_site(Site one, Site other) {
  return one.line == other.line &&
         (one.file == other.file || std::strcmp(one.file, other.file) == 0);
}

}  // namespace emulator
