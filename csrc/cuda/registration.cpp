// CUDA kernels for the operators that erase_kernels/_schemas.py defines, and what the library says
// about them to erase_kernels/_native.py.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(erase_kernels, CUDA, m) { ERASE_KERNELS_REGISTER(m, cuda, "native"); }

// Compute capabilities with machine code, and the toolkit's version.
extern "C" __attribute__((visibility("default"))) const char* erase_kernels_cuda_build() {
  return ERASE_KERNELS_CUDA_BUILD;
}
