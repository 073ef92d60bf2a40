// Kernels that the tests of the emulator call: each does what its name says, without torch.
#pragma once

#include <exception>
#include <string>

#include "cuda/device.cuh"
#include "emulated_launch.h"

// Reads `in`, writes `out`; returns the message of what was thrown, or null.
#define PROBE(name)                                                             \
  static void name(const void* in, void* out, const int32_t* options);          \
  extern "C" __attribute__((visibility("default"))) const char* probe_##name(   \
      const void* in, void* out, const int32_t* options) {                      \
    static std::string message;                                                 \
    try {                                                                       \
      name(in, out, options);                                                   \
    } catch (const std::exception& error) {                                     \
      message = error.what();                                                   \
      return message.c_str();                                                   \
    }                                                                           \
    return nullptr;                                                             \
  }                                                                             \
  static void name([[maybe_unused]] const void* in, [[maybe_unused]] void* out, \
                   [[maybe_unused]] const int32_t* options)

namespace erase_kernels {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            const Arguments&... arguments) {
  launch_kernel<Parameters...>("probe", 0, kernel, grid, block, shared_bytes, arguments...);
}

}  // namespace erase_kernels
