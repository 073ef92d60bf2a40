// Tensor-core fragments: how they are loaded, and what their product is.
#include "probe.h"

namespace erase_kernels {
namespace {

// in: 16x16 of 16 bits, rows after each other; out: four words per lane.
__global__ void fragments_kernel(const uint16_t* in, uint32_t* out) {
  ERASE_SHARED(uint16_t, tile, [16][24]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tile[i / 16][i % 16] = in[i];
  __syncwarp();
  uint32_t words[4];
  ldmatrix_x4(words, &tile[lane % 16][lane / 16 * 8]);
  for (int i = 0; i < 4; ++i) out[4 * lane + i] = words[i];
}

// a 16x16 by rows, b 16x8 by columns, c 16x8 by rows; fragments as the PTX manual lists them.
template <bool kHalf>
__global__ void product_kernel(const uint16_t* a, const uint16_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = lane % 4 * 2;
  const auto two = [](const uint16_t* place) {
    return static_cast<uint32_t>(place[0]) | static_cast<uint32_t>(place[1]) << 16;
  };
  const uint32_t left[4] = {two(a + 16 * group + pair), two(a + 16 * (group + 8) + pair),
                            two(a + 16 * group + pair + 8), two(a + 16 * (group + 8) + pair + 8)};
  const uint32_t right[2] = {two(b + 16 * group + pair), two(b + 16 * group + pair + 8)};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[8 * (group + i / 2 * 8) + pair + i % 2];
  if (kHalf)
    mma_m16n8k16_half(sums, left, right);
  else
    mma_m16n8k16_bfloat16(sums, left, right);
  for (int i = 0; i < 4; ++i) c[8 * (group + i / 2 * 8) + pair + i % 2] = sums[i];
}

}  // namespace

PROBE(fragments) {
  launch(fragments_kernel, 1, 32, 0, static_cast<const uint16_t*>(in), static_cast<uint32_t*>(out));
}
PROBE(product) {
  const uint16_t* a = static_cast<const uint16_t*>(in);
  launch(options[0] != 0 ? product_kernel<true> : product_kernel<false>, 1, 32, 0, a, a + 256,
         static_cast<float*>(out));
}

}  // namespace erase_kernels
