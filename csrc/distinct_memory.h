// Tensors that are changed in place together must not share memory.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "checks.h"

namespace erase_kernels {

inline void refuse_shared_memory(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<const void*, size_t>> starts;
  starts.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i].numel() > 0) starts.emplace_back(tensors[i].const_data_ptr(), i);
  std::sort(starts.begin(), starts.end());
  for (size_t i = 1; i < starts.size(); ++i)
    if (starts[i].first == starts[i - 1].first)
      refuse("tensors", "expected tensors that share no memory, got the same memory at places ",
             starts[i - 1].second, " and ", starts[i].second);
}

}  // namespace erase_kernels
