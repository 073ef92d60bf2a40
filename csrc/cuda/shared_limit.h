// How much shared memory a launch gets without asking.
#pragma once

#include <cstddef>

namespace erase_kernels {

// More than 48 KB must be asked for, of which the kernel's static part, unknown to the launcher,
// takes its share (CUDA Programming Guide). Asking for less is harmless.
constexpr size_t kAskedSharedBytes = 32 << 10;
constexpr bool asks_for_shared(size_t dynamic_bytes) { return dynamic_bytes > kAskedSharedBytes; }

}  // namespace erase_kernels
