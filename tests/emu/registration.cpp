// The CUDA operators on CPU tensors, through the emulator: <operator>_emulated.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(erase_kernels, CPU, m) { ERASE_KERNELS_REGISTER(m, cuda, "emulated"); }
