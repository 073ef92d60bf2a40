// Argument checks that name the argument, and the few tensor accessors all kernels share.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>

namespace erase_kernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::invalid_argument, which Python sees as ValueError.
template <typename... Parts>
[[noreturn]] void refuse(const char* argument, const Parts&... parts) {
  std::ostringstream message;
  message << argument << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <typename... Parts>
void check(bool condition, const char* argument, const Parts&... parts) {
  if (!condition) refuse(argument, parts...);
}

inline void check_dtype(const Tensor& tensor, ScalarType expected, const char* argument,
                        const char* name) {
  check(tensor.scalar_type() == expected, argument, "expected dtype ", name);
}

inline void check_contiguous(const Tensor& tensor, const char* argument) {
  check(tensor.is_contiguous(), argument, "expected a contiguous tensor");
}

// First entry of a contiguous int32 tensor of indices, counts or offsets.
inline const int32_t* read_ids(const Tensor& tensor, const char* argument) {
  check_dtype(tensor, ScalarType::Int, argument, "int32");
  check_contiguous(tensor, argument);
  return tensor.const_data_ptr<int32_t>();
}

}  // namespace erase_kernels
