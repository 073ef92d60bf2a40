// csrc/cuda/current_stream.h for the emulator: kernels run at once, on CPU tensors.
#pragma once

#include "cuda/shared_limit.h"
#include "emulated_device.h"

namespace erase_kernels {

struct CurrentDevice {
  explicit CurrentDevice(int32_t) {}
};

constexpr size_t kEmulatedParameterBytes = 32764;  // CUDA 12.1 and later, sm_70 and later

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, int32_t, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kEmulatedParameterBytes, "too many parameters");
  ::emulator::ask_for_shared(asks_for_shared(shared_bytes));
  ::emulator::run(name, grid, block, shared_bytes,
                  [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace erase_kernels
