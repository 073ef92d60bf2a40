// Data races of the emulated threads. In the build for it (see build.py) the compiler calls
// __tsan_read4 and the like before every access of kernel code; races.cpp has those functions, and
// knows which accesses a barrier, a warp operation or another launch puts in order. Elsewhere
// nothing of this does anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

enum class Access { kRead, kWrite, kAtomic };

#ifdef ERASE_EMULATED_RACES
void races_begin_launch();
void races_begin_block(int threads);
void races_block_barrier();
// The lanes of `mask` have met.
void races_meeting(int warp, uint32_t mask);
// Of the present thread to memory that others see.
void races_access(const void* place, size_t bytes, Access access);
// Shared memory of the block: no other block's.
void races_shared(const void* place, size_t bytes);
void races_fence();
// The first race of this launch; empty without.
std::string races_found();
#else
inline void races_begin_launch() {}
inline void races_begin_block(int) {}
inline void races_block_barrier() {}
inline void races_meeting(int, uint32_t) {}
inline void races_access(const void*, size_t, Access) {}
inline void races_shared(const void*, size_t) {}
inline void races_fence() {}
inline std::string races_found() { return {}; }
#endif

}  // namespace emulator
