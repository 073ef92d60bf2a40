// CPU kernels exist once per instruction set, compiled from the same loops.
//
// Every variant gives the same bits: no floating-point sum is reordered and -ffp-contract=off keeps
// products and sums apart. Two ways to write them:
//   * CPU_CLONES before a plain function: the compiler makes and dispatches the variants.
//   * one function per instruction set, chosen with active_clone(): where a variant has code of its
//     own, or a test must be able to force it.
// The names are instruction sets, not processors: "arch=haswell" would be taken on Intel's Haswell
// only and leave every AMD processor with the baseline.
#pragma once

#define ERASE_KERNELS_AVX2 "avx2,bmi,bmi2,f16c"
#define ERASE_KERNELS_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,f16c"

#define CPU_CLONES __attribute__((target_clones("default", "avx2")))

namespace erase_kernels {

enum class Clone { kBaseline, kAvx2, kAvx512 };

// The best variant this processor runs, unless the environment variable ERASE_KERNELS_CPU_CLONE
// names a lesser one. Decided once.
Clone active_clone();

// "baseline", "avx2" or "avx512".
const char* clone_name(Clone clone);

}  // namespace erase_kernels
