// torch's current stream and device through the stable ABI, and a checked launch. The functions
// declared weak are those of torch's CUDA half: the library also loads where torch has none.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/shared_limit.h"

#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace erase_kernels {

using CurrentDevice = torch::stable::accelerator::DeviceGuard;

inline void check_cuda(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next launch would report it again
  std::ostringstream message;
  message << name << ": CUDA says: " << cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    message << "; the library has no kernels for this device (python -m erase_kernels "
               "lists what it has): use backend=\"triton\"";
  if (error == cudaErrorInsufficientDriver)
    message << "; the library needs a driver for CUDA 13 (580 or later)";
  throw std::runtime_error(message.str());
}

inline cudaStream_t current_stream(int32_t device, const char* name) {
  if (aoti_torch_get_current_cuda_stream == nullptr)
    throw std::runtime_error(std::string(name) + ": this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, int32_t device, void (*kernel)(Parameters...), dim3 grid,
                   dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  if (asks_for_shared(shared_bytes))
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  kernel<<<grid, block, shared_bytes, current_stream(device, name)>>>(
      static_cast<Parameters>(arguments)...);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace erase_kernels
