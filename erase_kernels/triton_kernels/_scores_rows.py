"""First half of text_to_vision_scores: statistics of each packed query row over the keys.

``m`` is a row's largest visible logit in units of log2 and ``l`` the sum of ``exp2(logit - m)``;
they stay apart because a logarithm of ``l`` would cost precision. A program of the first kernel
keeps its keys in shared memory and lets the rows pass by; one of the second adds what all blocks of
keys say about a few rows, in the order of the blocks.
Tried, compiled only: two loops, one without masks (129 instead of 97 KiB of shared memory, as their
buffers are not shared, so that only one program fits a multiprocessor instead of two).
"""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels._status import Status
from erase_kernels.triton_kernels._scores_blocks import (
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

OFFSETS = tl.constexpr(int(Status.OFFSETS))
INDICES = tl.constexpr(int(Status.INDICES))


@triton.jit(
    do_not_specialize=[
        "p_rows",
        "p_row_offsets",
        "p_columns",
        "p_column_offsets",
        "p_mask",
        "p_max",
        "p_sum",
        "sizes",
        "query_strides",
        "key_strides",
        "query_offset",
        "masked",
        "listed",
        "row_splits",
    ]
)
def text_to_vision_scores_rows_kernel(
    p_query,  # [B, H, S, d]
    p_key,  # [B, Hk, L, d]
    p_rows,  # i32 [R]
    p_row_offsets,  # i32 [B + 1]
    p_columns,  # i32 [C]
    p_column_offsets,  # i32 [B + 1]
    p_mask,  # u8 [B, L], not read unless masked
    p_max,  # f32 [blocks, Hk * R * GROUP]: m
    p_sum,  # f32 [blocks, Hk * R * GROUP]: l
    sizes,  # (B, S, L, R, C), as `odd` hides them, like all strides
    query_strides,  # batch, head, position in units of VECTOR; depth in elements
    key_strides,
    query_offset,  # clamped to [-S, L]; L where nothing is causal
    scale,  # |scale| * log2(e), above 0
    masked,  # 1 if there is a key mask
    listed,  # 1 if the softmax runs over the columns only
    row_splits,
    GROUP: tl.constexpr,  # query heads per key head
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    VECTOR: tl.constexpr,
    NEGATIVE: tl.constexpr,
):
    """m and l of every packed row over each block of keys: grid (blocks * B, Hk * row_splits).

    Rows are dealt to ``row_splits`` programs in small problems, which changes no arithmetic.
    Longer than most: the loop shares nearly every value with what comes before it.
    """
    batch, queries, keys, rows, columns = plain_sizes(sizes)
    query_batch, query_head, query_row, query_depth = plain_strides(query_strides)
    key_batch, key_head, key_row, key_depth = plain_strides(key_strides)
    i_batch = tl.program_id(0) % batch
    i_block = tl.program_id(0) // batch
    i_head = tl.program_id(1) // row_splits
    i_split = tl.program_id(1) % row_splits
    start, end = segment_of(p_row_offsets, i_batch, rows)
    count = (end - start) * GROUP
    wide_batch = i_batch.to(tl.int64)
    wide_head = i_head.to(tl.int64)

    i_key = i_block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    first, last = segment_of(p_column_offsets, i_batch, columns)
    m_listed = i_key < tl.where(listed != 0, last - first, keys)
    m_read = i_key < tl.where(listed != 0, last - first, 0)
    b_position = tl.load(p_columns + first + i_key, mask=m_read, other=0)
    b_position = tl.where(listed != 0, b_position, i_key)
    p_mask += wide_batch * keys
    b_visible = visible_positions(p_mask, masked, b_position, m_listed, keys)
    hidden = tl.max(b_visible) > lowest_limit(p_rows, start, end, queries, query_offset)

    p_query += (wide_batch * query_batch + wide_head * GROUP * query_head) * VECTOR
    p_key += (wide_batch * key_batch + wide_head * key_head) * VECTOR
    b_key = tl.minimum(tl.maximum(b_position, 0), keys - 1).to(tl.int64) * key_row
    b_keys = load_block(p_key, b_key, key_depth, 0, DEPTH, BLOCK_DEPTH, VECTOR)
    heads = tl.num_programs(1) // row_splits
    o_row = (i_block.to(tl.int64) * heads + i_head) * rows * GROUP + start.to(tl.int64) * GROUP
    for i_first in range(i_split * BLOCK_ROWS, count, row_splits * BLOCK_ROWS):
        b_row, b_head = packed_rows(p_rows, start, count, i_first, queries, GROUP, BLOCK_ROWS)
        b_query = b_row.to(tl.int64) * query_row + b_head.to(tl.int64) * query_head
        b_logit = block_logits(
            p_query, p_key, b_query, b_key, b_keys, query_depth, key_depth, DEPTH,
            BLOCK_DEPTH, VECTOR, NEGATIVE,
        )  # fmt: skip
        if hidden:
            m_visible = b_visible[None, :] <= (b_row + query_offset)[:, None]
            b_logit = tl.where(m_visible, b_logit, float("-inf"))
        b_max = tl.max(b_logit, axis=1) * scale
        b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
        b_sum = tl.sum(relative_weights(b_logit, scale, b_shift), axis=1)
        i_packed = i_first + tl.arange(0, BLOCK_ROWS)
        tl.store(p_max + o_row + i_packed, b_max, mask=i_packed < count)
        tl.store(p_sum + o_row + i_packed, b_sum, mask=i_packed < count)


@triton.jit
def _flag_offsets(p_offsets, i_entry, batch, total, p_status):
    """Sets OFFSETS where the offset at ``i_entry`` is not 0, falls or misses the total."""
    b_low = tl.load(p_offsets + i_entry, mask=i_entry <= batch, other=0)
    b_high = tl.load(p_offsets + i_entry + 1, mask=i_entry < batch, other=0)
    m_bad = (i_entry < batch) & (b_low > b_high)
    m_bad = m_bad | ((i_entry == 0) & (b_low != 0)) | ((i_entry == batch) & (b_low != total))
    if tl.max(m_bad.to(tl.int32)) > 0:
        tl.atomic_or(p_status, OFFSETS)


@triton.jit
def _flag_indices(p_index, i_entry, total, limit, p_status):
    """Sets INDICES where an entry is outside ``[0, limit)``."""
    b_index = tl.load(p_index + i_entry, mask=i_entry < total, other=0)
    m_bad = (i_entry < total) & ((b_index < 0) | (b_index >= limit))
    if tl.max(m_bad.to(tl.int32)) > 0:
        tl.atomic_or(p_status, INDICES)


@triton.jit(
    do_not_specialize=[
        "p_block_max",
        "p_block_sum",
        "p_max",
        "p_weight",
        "p_query_offset",
        "p_rows",
        "p_row_offsets",
        "p_columns",
        "p_column_offsets",
        "p_status",
        "sizes",
        "query_strides",
        "heads",
        "blocks",
        "group",
    ]
)
def text_to_vision_scores_combine_kernel(
    p_block_max,  # f32 [blocks, H * R]
    p_block_sum,  # f32 [blocks, H * R]
    p_max,  # f32 [H * R]: m; +inf for rows that do not exist
    p_weight,  # f32 [H * R]: 1 / l
    p_query_offset,  # i64 [R * group]: where the queries of a row and head start
    p_rows,  # i32 [R]
    p_row_offsets,  # i32 [B + 1]
    p_columns,  # i32 [C]
    p_column_offsets,  # i32 [B + 1]
    p_status,  # i32 [1]
    sizes,  # (B, S, L, R, C), as `odd` hides them, like all strides
    query_strides,  # batch, head, position in units of VECTOR; depth in elements
    heads,  # H
    blocks,
    group,  # query heads per key head
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """m and 1 / l over all keys, where each query starts, and the checks of all indices.

    One program per ``BLOCK`` packed rows, columns or offsets, whichever are more.
    """
    batch, queries, keys, rows, columns = plain_sizes(sizes)
    _batch, query_head, query_row, _depth = plain_strides(query_strides)
    i_entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _flag_offsets(p_row_offsets, i_entry, batch, rows, p_status)
    _flag_offsets(p_column_offsets, i_entry, batch, columns, p_status)
    _flag_indices(p_rows, i_entry, rows, queries, p_status)
    _flag_indices(p_columns, i_entry, columns, keys, p_status)

    count = heads * rows
    m_entry = i_entry < count
    p_block_max += i_entry[None, :]
    p_block_sum += i_entry[None, :]
    b_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    for i_first in range(0, blocks, BLOCK_PARTS):
        i_part = i_first + tl.arange(0, BLOCK_PARTS)
        m_part = (i_part < blocks)[:, None] & m_entry[None, :]
        o_part = (i_part.to(tl.int64) * count)[:, None]
        b_part = tl.load(p_block_max + o_part, mask=m_part, other=float("-inf"))
        b_max = tl.maximum(b_max, tl.max(b_part, axis=0))
    b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for i_first in range(0, blocks, BLOCK_PARTS):
        i_part = i_first + tl.arange(0, BLOCK_PARTS)
        m_part = (i_part < blocks)[:, None] & m_entry[None, :]
        o_part = (i_part.to(tl.int64) * count)[:, None]
        b_part = tl.load(p_block_max + o_part, mask=m_part, other=float("-inf"))
        b_size = tl.load(p_block_sum + o_part, mask=m_part, other=0.0)
        b_sum += tl.sum(b_size * tl.exp2(b_part - b_shift[None, :]), axis=0)

    i_row = (i_entry // group) % tl.maximum(rows, 1)
    b_row = tl.load(p_rows + i_row, mask=m_entry, other=0)
    m_exists = (b_row >= 0) & (b_row < queries)
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)  # of rows that see nothing
    tl.store(p_max + i_entry, tl.where(m_exists, b_max, float("inf")), mask=m_entry)
    tl.store(p_weight + i_entry, tl.where(m_exists, 1.0 / b_sum, 0.0), mask=m_entry)
    o_query = tl.where(m_exists, b_row, 0).to(tl.int64) * query_row
    o_query += (i_entry % group).to(tl.int64) * query_head
    tl.store(p_query_offset + i_entry, o_query, mask=m_entry & (i_entry < rows * group))
