// text_to_vision_scores: statistics of the rows (scores_rows.cuh: two kernels), then sums for the
// columns (scores_columns.cuh: two kernels). Keys and queries are each read once per pass and key
// head from memory, and by every block that needs them from the second-level cache.
// Considered: rows x keys tiles in shared memory on both sides (bound by shared memory: 5 reads per
// 8 products); keys in registers in both passes (the rows' maxima would have to be exchanged
// between threads and blocks for every tile); one pass that stores the weights of all columns
// (heads x rows x columns floats).
#pragma once

#include "cuda/scores_columns.cuh"
#include "cuda/scores_plan.h"
#include "cuda/scores_rows.cuh"
