"""Pieces of the scoring kernels: segments, gathered blocks of queries and keys, logits.

Packed rows: the ``HEADS`` query heads of a program and the rows of a batch row are one list,
row-major, ``i = row * HEADS + head``. No load of queries or keys is masked by row, which would make
it narrow: an index past the end, or a bad one, reads a row that exists, and the result is dropped.
"""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._odd import plain

# The interpreter's bfloat16 arithmetic is wrong, and its products of float32 matrices depend on the
# shape of the blocks, while both passes must find the very same logits, as they do on a GPU.
INTERPRETED = tl.constexpr(_launch.INTERPRETED)
SUM_TYPE = tl.constexpr(tl.float64 if _launch.INTERPRETED else tl.float32)
NOWHERE = tl.constexpr(2**31 - 1)  # position of a key that no row may see
ROWS_AT_ONCE = tl.constexpr(128)


@triton.jit
def plain_sizes(sizes):
    """The five numbers of ``sizes``, int32."""
    batch = plain(sizes[0]).to(tl.int32)
    queries = plain(sizes[1]).to(tl.int32)
    keys = plain(sizes[2]).to(tl.int32)
    rows = plain(sizes[3]).to(tl.int32)
    columns = plain(sizes[4]).to(tl.int32)
    return batch, queries, keys, rows, columns


@triton.jit
def plain_strides(strides):
    """The four numbers of ``strides``, int64."""
    return plain(strides[0]), plain(strides[1]), plain(strides[2]), plain(strides[3])


@triton.jit
def segment_of(p_offsets, i_segment, total):
    """Start and end of a segment, inside ``[0, total]`` and in order whatever the offsets hold."""
    start = tl.minimum(tl.maximum(tl.load(p_offsets + i_segment), 0), total)
    end = tl.minimum(tl.maximum(tl.load(p_offsets + i_segment + 1), start), total)
    return start, end


@triton.jit
def lowest_limit(p_rows, start, end, queries, query_offset):
    """The last key position that all rows of a batch row may see."""
    lowest = NOWHERE - 1
    for i_first in range(start, end, ROWS_AT_ONCE):
        i_row = i_first + tl.arange(0, ROWS_AT_ONCE)
        b_row = tl.load(p_rows + i_row, mask=i_row < end, other=-1)
        m_valid = (b_row >= 0) & (b_row < queries)
        lowest = tl.minimum(lowest, tl.min(tl.where(m_valid, b_row + query_offset, NOWHERE - 1)))
    return lowest


@triton.jit
def visible_positions(p_mask, masked, b_position, m_listed, keys):
    """``NOWHERE`` for entries that are not listed, not in the keys, or hidden by the mask."""
    m_listed = m_listed & (b_position >= 0) & (b_position < keys)
    b_shown = tl.load(p_mask + b_position, mask=m_listed & (b_position < keys * masked), other=1)
    m_listed = m_listed & (b_shown != 0)
    return tl.where(m_listed, b_position, NOWHERE)


@triton.jit
def packed_rows(p_rows, start, count, i_first, queries, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Query positions and heads (from 0) of a block of the ``count`` packed rows."""
    i_packed = tl.minimum(i_first + tl.arange(0, BLOCK), count - 1)
    i_row = (i_packed.to(tl.uint32) // HEADS).to(tl.int32)  # unsigned is cheaper
    b_position = tl.load(p_rows + start + i_row)
    b_position = tl.minimum(tl.maximum(b_position, 0), queries - 1)
    return b_position, i_packed - i_row * HEADS


@triton.jit
def load_block(
    p_base,
    b_offset,  # [rows] int64, in units of VECTOR elements
    stride_depth,
    i_chunk: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """``[rows, BLOCK_DEPTH]`` gathered rows, zero beyond ``DEPTH``.

    With ``VECTOR`` > 1 every row starts at a multiple of 16 bytes and is contiguous.
    """
    i_depth = i_chunk * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
    if VECTOR > 1:
        p_block = p_base + (b_offset * VECTOR)[:, None] + i_depth[None, :]
    else:
        p_block = p_base + b_offset[:, None] + (i_depth * stride_depth.to(tl.int64))[None, :]
    if (i_chunk + 1) * BLOCK_DEPTH > DEPTH:
        block = tl.load(p_block, mask=(i_depth < DEPTH)[None, :], other=0.0)
    else:
        block = tl.load(p_block)
    return block.to(tl.float32).to(SUM_TYPE) if INTERPRETED else block


@triton.jit
def block_logits(
    p_query,
    p_key,
    b_query,  # [BLOCK_ROWS] int64 offsets
    b_key,  # [BLOCK_KEYS] int64 offsets
    b_keys,  # [BLOCK_KEYS, BLOCK_DEPTH], used where the depth is one block
    stride_query,
    stride_key,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    VECTOR: tl.constexpr,
    NEGATIVE: tl.constexpr,
):
    """``[BLOCK_ROWS, BLOCK_KEYS]`` dot products, negated for a negative scale."""
    b_queries = load_block(p_query, b_query, stride_query, 0, DEPTH, BLOCK_DEPTH, VECTOR)
    b_logit = tl.dot(b_queries, b_keys.T, input_precision="ieee", out_dtype=SUM_TYPE)
    for i_chunk in tl.static_range(1, (DEPTH + BLOCK_DEPTH - 1) // BLOCK_DEPTH):
        b_queries = load_block(p_query, b_query, stride_query, i_chunk, DEPTH, BLOCK_DEPTH, VECTOR)
        b_more = load_block(p_key, b_key, stride_key, i_chunk, DEPTH, BLOCK_DEPTH, VECTOR)
        b_logit = tl.dot(b_queries, b_more.T, b_logit, input_precision="ieee", out_dtype=SUM_TYPE)
    b_logit = b_logit.to(tl.float32)
    return -b_logit if NEGATIVE else b_logit


@triton.jit
def relative_weights(b_logit, scale, b_max):
    """``exp2(b_logit * scale - b_max)`` with one rounding of the exponent.

    ``b_max`` is rounded, but the same for all that is compared; logits of hundreds would lose
    digits if their products were rounded too. The interpreter does not fuse, hence float64.
    """
    if INTERPRETED:
        b_power = b_logit.to(tl.float64) * scale - b_max[:, None]
        return tl.exp2(b_power.to(tl.float32))
    return tl.exp2(tl.fma(b_logit, scale, -b_max[:, None]))
