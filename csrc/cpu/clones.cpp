#include "cpu/clones.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace erase_kernels {

namespace {

Clone best_clone() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Clone::kAvx512;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? Clone::kAvx2
                                                                          : Clone::kBaseline;
}

Clone wanted_clone() {
  const Clone best = best_clone();
  const char* name = std::getenv("ERASE_KERNELS_CPU_CLONE");
  if (name == nullptr) return best;
  for (Clone clone : {Clone::kBaseline, Clone::kAvx2, Clone::kAvx512}) {
    if (std::strcmp(name, clone_name(clone)) == 0 && clone <= best) return clone;
  }
  return best;  // erase_kernels/_native.py refuses names that were not taken
}

}  // namespace

Clone active_clone() {
  static const Clone clone = wanted_clone();
  return clone;
}

const char* clone_name(Clone clone) {
  switch (clone) {
    case Clone::kAvx512:
      return "avx512";
    case Clone::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace erase_kernels
