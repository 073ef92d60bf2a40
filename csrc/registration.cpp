// CPU kernels for the operators that erase_kernels/_schemas.py defines.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(erase_kernels, CPU, m) { ERASE_KERNELS_REGISTER(m, cpu, "native"); }
