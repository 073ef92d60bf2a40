// What the library says about itself to erase_kernels/_native.py.
#include "cpu/clones.h"

namespace {
// Found in the file's bytes before the library is loaded.
__attribute__((used)) const char source_hash_marker[] =
    "ERASE_KERNELS_SOURCE_HASH=" ERASE_KERNELS_SOURCE_HASH;
}  // namespace

// Name of the instruction set the CPU kernels run with here.
extern "C" __attribute__((visibility("default"))) const char* erase_kernels_cpu_clone() {
  return erase_kernels::clone_name(erase_kernels::active_clone());
}
