// Host side of the CUDA kernels: torch's current device and stream, the device's status word, and
// the launch itself. Never waits for the device, so that launches can be captured in a graph.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "cuda/device.cuh"
#include "cuda/status.h"

#ifdef ERASE_KERNELS_EMULATOR
#include "emulated_launch.h"
#else
#include "cuda/current_stream.h"
#endif

namespace erase_kernels {

// Where the status word of a device is; kept after the first call. Python owns the word
// (erase_kernels/_status.py).
int32_t* status_word(int32_t device);

// One operator's launches: makes a tensor's device current while it lives.
class Launcher {
 public:
  // `name` of the operator, for messages.
  Launcher(const char* name, const Tensor& tensor)
      : name_(name), device_(tensor.get_device_index()), guard_(device_) {}

  int32_t* status() const { return status_word(device_); }

  // kernel<<<grid, block, shared_bytes>>>(arguments...) on the current stream; nothing for an empty
  // grid. Arguments are converted to the kernel's parameters.
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                  const Arguments&... arguments) const {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "arguments of the kernel");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    launch_kernel<Parameters...>(name_, device_, kernel, grid, block, shared_bytes, arguments...);
  }

 private:
  const char* name_;
  int32_t device_;
  CurrentDevice guard_;
};

}  // namespace erase_kernels
