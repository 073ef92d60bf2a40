// Body of one clone of the score strip. score_strip.cpp includes it once per instruction set,
// inside a namespace of its own, after defining EK_TARGET (function attribute), LANES, TILE_KEYS
// and the vector primitives Vec, ek_fma, ek_set, ek_load, ek_store, ek_reduce. No include guard, on
// purpose.

typedef int32_t IntVec __attribute__((vector_size(LANES * 4), may_alias));

// exp(x) for x <= 0: 2^n * p(r) with n = round(x / ln 2), |r| <= ln(2)/2, p the Taylor polynomial
// of degree 7 (truncation 5e-9). Relative error below 3 units in the last place; 0 below kExpFloor,
// where the true value is under 2.8e-38; a NaN stays a NaN.
EK_TARGET static inline Vec exp_nonpositive(Vec x) {
  const Vec magic = ek_set(kRoundMagic);
  const Vec shifted = ek_fma(x, ek_set(kLog2E), magic);
  const Vec n = shifted - magic;
  Vec r = ek_fma(n, ek_set(-kLn2High), x);
  r = ek_fma(n, ek_set(-kLn2Low), r);
  Vec p = ek_set(1.0f / 5040.0f);
  p = ek_fma(p, r, ek_set(1.0f / 720.0f));
  p = ek_fma(p, r, ek_set(1.0f / 120.0f));
  p = ek_fma(p, r, ek_set(1.0f / 24.0f));
  p = ek_fma(p, r, ek_set(1.0f / 6.0f));
  p = ek_fma(p, r, ek_set(0.5f));
  p = ek_fma(p, r, ek_set(1.0f));
  p = ek_fma(p, r, ek_set(1.0f));
  const IntVec power = ((IntVec)shifted << kMantissaBits) + kExponentOne;
  const Vec y = p * (Vec)power;
  return x < ek_set(kExpFloor) ? ek_set(0.0f) : y;
}

// Scores of TILE_KEYS keys against VECTORS * LANES rows: accumulators live in registers over the
// whole depth. Writes masked scores to out[key * rows] and raises the lane-wise maxima.
template <int VECTORS>
EK_TARGET static inline void score_tile(const float* queries, int64_t rows, int64_t depth,
                                        const float* const* keys, const int32_t* positions,
                                        const int32_t* limits, float* out, float* maxima) {
  Vec acc[TILE_KEYS][VECTORS];
  const float* key[TILE_KEYS];
#pragma GCC unroll 8
  for (int i = 0; i < TILE_KEYS; ++i) {
    key[i] = keys[i];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) acc[i][v] = ek_set(0.0f);
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec q[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) q[v] = ek_load(queries + d * rows + v * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < TILE_KEYS; ++i) {
      const Vec k = ek_set(key[i][d]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) acc[i][v] = ek_fma(k, q[v], acc[i][v]);
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < VECTORS; ++v) {
    IntVec limit;
    __builtin_memcpy(&limit, limits + v * LANES, sizeof(limit));
    Vec maximum = ek_load(maxima + v * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < TILE_KEYS; ++i) {
      const IntVec position = IntVec{} + positions[i];
      const Vec score = position <= limit ? acc[i][v] : ek_set(-kInfinity);
      ek_store(out + i * rows + v * LANES, score);
      maximum = score > maximum ? score : maximum;
    }
    ek_store(maxima + v * LANES, maximum);
  }
}

// Scores of one block of keys (padded to kKeyBlock) against all rows of the strip.
EK_TARGET static void score_block(const Strip& s, const float* const* keys,
                                  const int32_t* positions, float* out, float* maxima) {
  for (int64_t i = 0; i < kKeyBlock; i += TILE_KEYS) {
    int64_t row = 0;
    for (; row + 3 * LANES <= s.rows; row += 3 * LANES)
      score_tile<3>(s.queries + row, s.rows, s.depth, keys + i, positions + i, s.limits + row,
                    out + i * s.rows + row, maxima + row);
    for (; row < s.rows; row += LANES)
      score_tile<1>(s.queries + row, s.rows, s.depth, keys + i, positions + i, s.limits + row,
                    out + i * s.rows + row, maxima + row);
  }
}

EK_TARGET static void widen_row(const KeyView& keys, int64_t position, int64_t depth, float* out) {
  const int64_t start = position * keys.position_stride;
  if (keys.type == KeyType::kFloat) {
    const float* in = static_cast<const float*>(keys.data) + start;
    for (int64_t d = 0; d < depth; ++d) out[d] = in[d * keys.depth_stride];
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(keys.data) + start;
  if (keys.type == KeyType::kBFloat16) {
    if (keys.depth_stride == 1) {
      for (int64_t d = 0; d < depth; ++d) out[d] = widen_bfloat16(in[d]);
    } else {
      for (int64_t d = 0; d < depth; ++d) out[d] = widen_bfloat16(in[d * keys.depth_stride]);
    }
    return;
  }
  if (keys.depth_stride == 1) {
    for (int64_t d = 0; d < depth; ++d) out[d] = widen_half(in[d]);
  } else {
    for (int64_t d = 0; d < depth; ++d) out[d] = widen_half(in[d * keys.depth_stride]);
  }
}

// Pointers and positions of the keys of one block; keys are used in place where they are float with
// unit stride, else widened into scratch. Padding keys repeat the last one under a position no row
// may see.
EK_TARGET static void gather_block(const Strip& s, int64_t start, float* scratch,
                                   const float** keys, int32_t* positions) {
  const bool in_place = s.keys.type == KeyType::kFloat && s.keys.depth_stride == 1;
  const int64_t count = std::min(kKeyBlock, s.keys.count - start);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t position = s.keys.list[start + i];
    positions[i] = position;
    if (in_place) {
      keys[i] = static_cast<const float*>(s.keys.data) + position * s.keys.position_stride;
    } else {
      keys[i] = scratch + i * s.depth;
      widen_row(s.keys, position, s.depth, scratch + i * s.depth);
    }
  }
  for (int64_t i = count; i < kKeyBlock; ++i) {
    keys[i] = keys[count - 1];
    positions[i] = kNoKey;
  }
}

// scores -> exp(score - maximum) in place; adds their sum to totals after rescaling what was there.
EK_TARGET static void exponentiate_block(int64_t rows, float* block, const float* previous,
                                         const float* maxima, float* totals) {
  for (int64_t row = 0; row < rows; row += LANES) {
    const Vec maximum = ek_load(maxima + row);
    const Vec rescale = exp_nonpositive(ek_load(previous + row) - maximum);
    Vec sum = ek_set(0.0f);
    for (int64_t i = 0; i < kKeyBlock; ++i) {
      float* score = block + i * rows + row;
      const Vec e = exp_nonpositive(ek_load(score) - maximum);
      ek_store(score, e);
      sum = sum + e;
    }
    ek_store(totals + row, ek_fma(ek_load(totals + row), rescale, sum));
  }
}

// block_scales holds each block's running maximum; turns it into exp(block maximum - final maximum)
// / total.
EK_TARGET static void finish_scales(int64_t rows, int64_t blocks, const float* maxima,
                                    const float* weights, float* scales) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t row = 0; row < rows; row += LANES) {
      float* scale = scales + b * rows + row;
      ek_store(scale,
               exp_nonpositive(ek_load(scale) - ek_load(maxima + row)) * ek_load(weights + row));
    }
  }
}

EK_TARGET static void add_columns(const Strip& s, const StripScratch& scratch,
                                  const StripOutput& output, const float* selected) {
  for (int64_t c = 0; c < s.columns; ++c) {
    const int64_t slot = s.column_slots[c];
    if (slot < 0) continue;
    const float* e = scratch.probabilities + slot * s.rows;
    const float* scale = scratch.block_scales + slot / kKeyBlock * s.rows;
    Vec sum = ek_set(0.0f);
    for (int64_t row = 0; row < s.rows; row += LANES) {
      Vec weight = ek_load(scale + row);
      if (selected != nullptr) weight = ek_load(selected + row) != 0.0f ? weight : ek_set(0.0f);
      sum = ek_fma(ek_load(e + row), weight, sum);
    }
    output.sums[c] += ek_reduce(sum);
  }
}

EK_TARGET static void run_strip(const Strip& s, const StripScratch& scratch,
                                const StripOutput* outputs, int64_t output_count) {
  float maxima[kStripRows], previous[kStripRows], totals[kStripRows], weights[kStripRows];
  const float* keys[kKeyBlock];
  int32_t positions[kKeyBlock];
  std::fill(maxima, maxima + s.rows, -kLargest);
  std::fill(totals, totals + s.rows, 0.0f);
  const int64_t blocks = score_blocks(s.keys.count);
  for (int64_t b = 0; b < blocks; ++b) {
    float* block = scratch.probabilities + b * kKeyBlock * s.rows;
    gather_block(s, b * kKeyBlock, scratch.key_rows, keys, positions);
    std::copy(maxima, maxima + s.rows, previous);
    score_block(s, keys, positions, block, maxima);
    exponentiate_block(s.rows, block, previous, maxima, totals);
    std::copy(maxima, maxima + s.rows, scratch.block_scales + b * s.rows);
  }
  row_weights(s, totals, weights);
  finish_scales(s.rows, blocks, maxima, weights, scratch.block_scales);
  for (int64_t o = 0; o < output_count; ++o) {
    float selected[kStripRows];
    for (int64_t row = 0; row < s.rows; ++row)
      selected[row] = row >= outputs[o].first && row < outputs[o].last ? 1.0f : 0.0f;
    add_columns(s, scratch, outputs[o], output_count == 1 ? nullptr : selected);
  }
}
