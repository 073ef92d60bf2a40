"""Second half of text_to_vision_scores: sums over the rows for each listed column.

A program keeps the keys of a block of columns in shared memory and lets the packed query rows pass
by: it computes their logits again and adds ``exp2(logit - m) / l`` to a tile in registers, whose
rows are added up once at the end. The last kernel adds key heads and splits in their order.
Tried, compiled only: query addresses computed here, not by the kernel before (2.5 instructions more
per logit); masks before the exponential (1 fewer, but a row whose sum is NaN then spoils columns it
may not see); adding in both branches (nothing gained, spills on sm_80).
"""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels._status import Status
from erase_kernels.triton_kernels._scores_blocks import (
    NOWHERE,
    block_logits,
    load_block,
    lowest_limit,
    packed_rows,
    plain_sizes,
    plain_strides,
    relative_weights,
    segment_of,
    visible_positions,
)

SCORES = tl.constexpr(int(Status.SCORES))
SEGMENTS_AT_ONCE = tl.constexpr(128)


@triton.jit
def _segments_of(p_offsets, batch, i_first, i_last):
    """First and last segment that own one of the entries ``i_first`` to ``i_last``."""
    first = 0
    last = 0
    for i_segment in range(0, batch, SEGMENTS_AT_ONCE):
        i_end = i_segment + tl.arange(0, SEGMENTS_AT_ONCE)
        b_end = tl.load(p_offsets + i_end + 1, mask=i_end < batch, other=NOWHERE)
        first += tl.sum((b_end <= i_first).to(tl.int32))
        last += tl.sum((b_end <= i_last).to(tl.int32))
    return first, tl.minimum(last, batch - 1)


@triton.jit(
    do_not_specialize=[
        "p_rows",
        "p_row_offsets",
        "p_columns",
        "p_column_offsets",
        "p_mask",
        "p_query_offset",
        "p_max",
        "p_weight",
        "p_score",
        "p_status",
        "sizes",
        "query_strides",
        "key_strides",
        "query_offset",
        "masked",
        "row_splits",
    ]
)
def text_to_vision_scores_columns_kernel(
    p_query,  # [B, H, S, d]
    p_key,  # [B, Hk, L, d]
    p_rows,  # i32 [R]
    p_row_offsets,  # i32 [B + 1]
    p_columns,  # i32 [C]
    p_column_offsets,  # i32 [B + 1]
    p_mask,  # u8 [B, L], not read unless masked
    p_query_offset,  # i64 [R * GROUP]: where the queries of a row and head start
    p_max,  # f32 [Hk * R * GROUP]: m
    p_weight,  # f32 [Hk * R * GROUP]: 1 / l
    p_score,  # f32 [row_splits * planes, C]
    p_status,  # i32 [1]
    sizes,  # (B, S, L, R, C), as `odd` hides them, like all strides
    query_strides,  # batch, head, position in units of VECTOR; depth in elements
    key_strides,
    query_offset,  # clamped to [-S, L]; L where nothing is causal
    scale,  # |scale| * log2(e), above 0
    masked,  # 1 if there is a key mask
    row_splits,
    divisor,  # of the result: the number of heads where nothing is left to add
    GROUP: tl.constexpr,  # query heads per key head
    HEADS: tl.constexpr,  # query heads per program: GROUP, or 1 where heads stay apart
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    NEGATIVE: tl.constexpr,
):
    """Scores of the columns by each plane: grid (blocks of columns, planes * row_splits).

    Planes are key heads, or query heads where they stay apart. A block may hold columns of several
    batch rows, which are taken one after the other. What the outer loop loads again it need not
    keep in registers during the inner one.
    Longer than most: the loops share nearly every value with what comes before them.
    """
    batch, queries, keys, rows, columns = plain_sizes(sizes)
    query_batch, query_head, _query_row, query_depth = plain_strides(query_strides)
    key_batch, key_head, key_row, key_depth = plain_strides(key_strides)
    i_plane = tl.program_id(1) // row_splits
    i_split = tl.program_id(1) % row_splits
    i_head = (i_plane * HEADS) // GROUP
    i_start = tl.program_id(0) * BLOCK_COLUMNS
    i_column = i_start + tl.arange(0, BLOCK_COLUMNS)
    i_last = tl.minimum(i_start + BLOCK_COLUMNS, columns) - 1
    first, last = _segments_of(p_column_offsets, batch, i_start, i_last)

    b_score = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for i_batch in range(first, last + 1):
        wide = tl.full((), 0, tl.int64) + i_batch
        start, end = segment_of(p_row_offsets, i_batch, rows)
        count = (end - start) * HEADS
        low, high = segment_of(p_column_offsets, i_batch, columns)
        m_listed = (i_column >= low) & (i_column < high)
        b_position = tl.load(p_columns + i_column, mask=m_listed, other=-1)
        b_visible = visible_positions(p_mask + wide * keys, masked, b_position, m_listed, keys)
        hidden = tl.max(b_visible) > lowest_limit(p_rows, start, end, queries, query_offset)

        o_query = wide * query_batch + i_plane.to(tl.int64) * HEADS * query_head
        p_queries = p_query + o_query * VECTOR
        p_keys = p_key + (wide * key_batch + i_head.to(tl.int64) * key_head) * VECTOR
        b_key = tl.minimum(tl.maximum(b_position, 0), keys - 1).to(tl.int64) * key_row
        b_keys = load_block(p_keys, b_key, key_depth, 0, DEPTH, BLOCK_DEPTH, VECTOR)
        o_row = (i_head.to(tl.int64) * rows + start) * GROUP + i_plane * HEADS - i_head * GROUP
        for i_first in range(i_split * BLOCK_ROWS, count, row_splits * BLOCK_ROWS):
            i_packed = i_first + tl.arange(0, BLOCK_ROWS)
            m_real = i_packed < count
            i_packed = tl.minimum(i_packed, count - 1)
            i_packed = (i_packed // HEADS) * GROUP + i_packed % HEADS
            b_query = tl.load(p_query_offset + start * GROUP + i_packed)
            b_logit = block_logits(
                p_queries, p_keys, b_query, b_key, b_keys, query_depth, key_depth,
                DEPTH, BLOCK_DEPTH, VECTOR, NEGATIVE,
            )  # fmt: skip
            b_max = tl.where(m_real, tl.load(p_max + o_row + i_packed), float("inf"))
            b_weight = tl.where(m_real, tl.load(p_weight + o_row + i_packed), 0.0)
            b_part = relative_weights(b_logit, scale, b_max) * b_weight[:, None]
            if hidden:
                b_row, _ = packed_rows(p_rows, start, count, i_first, queries, HEADS, BLOCK_ROWS)
                m_visible = b_visible[None, :] <= (b_row + query_offset)[:, None]
                b_part = tl.where(m_visible, b_part, 0.0)
            b_score += b_part
    b_sum = tl.sum(b_score, axis=0) / divisor
    if tl.max((b_sum != b_sum).to(tl.int32)) > 0:
        tl.atomic_or(p_status, SCORES)
    planes = tl.num_programs(1) // row_splits
    o_score = (i_split.to(tl.int64) * planes + i_plane) * columns
    tl.store(p_score + o_score + i_column, b_sum, mask=i_column < columns)


@triton.jit(do_not_specialize=["p_part", "p_score", "count", "parts"])
def text_to_vision_scores_sum_kernel(
    p_part,  # f32 [parts, count]
    p_score,  # f32 [count]
    count,
    parts,
    divisor,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Adds the parts in their order and divides: one program per ``BLOCK`` scores."""
    i_score = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for i_first in range(0, parts, BLOCK_PARTS):
        i_part = i_first + tl.arange(0, BLOCK_PARTS)
        m_part = (i_part < parts)[:, None] & (i_score < count)[None, :]
        o_part = i_part.to(tl.int64)[:, None] * count + i_score[None, :]
        b_sum += tl.sum(tl.load(p_part + o_part, mask=m_part, other=0.0), axis=0)
    tl.store(p_score + i_score, b_sum / divisor, mask=i_score < count)
