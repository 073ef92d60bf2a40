"""Kernels of compact_kv.py, where the way in which they work is described."""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels._status import Status
from erase_kernels.triton_kernels._moves import pick

COUNTS = tl.constexpr(int(Status.COUNTS))
KEEP = tl.constexpr(int(Status.KEEP))
BLOCK_TABLE = tl.constexpr(int(Status.BLOCK_TABLE))


@triton.jit
def first_moved(p_keep, count, length, CHECK: tl.constexpr):
    """Slots in front that stay where they are; -1 if the list is bad."""
    o_check = tl.arange(0, CHECK)
    b_first = tl.zeros((CHECK,), tl.int32) + count
    start = 0
    while start < count:
        i = start + o_check
        m_i = i < count
        b_slot = tl.load(p_keep + i, mask=m_i, other=0)
        b_before = tl.load(p_keep + i - 1, mask=m_i & (i > 0), other=-1)
        m_bad = m_i & ((b_slot <= b_before) | (b_slot >= length))
        b_first = tl.minimum(b_first, tl.where(m_i & (b_slot != i), i, count))
        b_first = tl.where(m_bad, -1, b_first)
        start += CHECK
    return tl.min(b_first, 0)


@triton.jit
def good_table(p_table, p_users, used, blocks, CHECK: tl.constexpr):
    """Whether the first ``used`` blocks exist and have one place in the whole table."""
    o_check = tl.arange(0, CHECK)
    b_bad = tl.zeros((CHECK,), tl.int32)
    start = 0
    while start < used:
        m_j = start + o_check < used
        b_block = tl.load(p_table + start + o_check, mask=m_j, other=0)
        m_exists = m_j & (b_block >= 0) & (b_block < blocks)
        b_users = tl.load(p_users + b_block, mask=m_exists, other=2)
        b_bad = tl.where(m_j & (b_users != 1), 1, b_bad)
        start += CHECK
    return tl.max(b_bad, 0) == 0


@triton.jit
def write_freed(p_freed, p_table, held, table_width, CHECK: tl.constexpr):
    """The blocks of one batch row from place ``held`` on; -1 before them."""
    o_check = tl.arange(0, CHECK)
    start = 0
    while start < table_width:
        j = start + o_check
        b_block = tl.load(p_table + j, mask=(j >= held) & (j < table_width), other=-1)
        tl.store(p_freed + j, b_block, mask=j < table_width)
        start += CHECK


@triton.jit
def rows_at(p_base, b_slot, m_slot, o_column, layout, PAGED: tl.constexpr, UNIT: tl.constexpr):
    """Pointers to the columns of slots of one batch row: [slots, columns]."""
    p_table, block_size, block_stride, slot_stride = layout
    if PAGED:
        b_block = tl.load(p_table + b_slot // block_size, mask=m_slot, other=0).to(tl.int64)
        b_inside = (b_slot % block_size).to(tl.int64)
        b_row = b_block * block_stride + b_inside * slot_stride
    else:
        b_row = b_slot.to(tl.int64) * slot_stride
    return tl.multiple_of(p_base + b_row[:, None] + o_column[None, :], (UNIT, UNIT))


@triton.jit
def load_chunk(
    p_base, b_slot, m_row, o_column, m_column, layout, PAGED: tl.constexpr, UNIT: tl.constexpr
):
    """The slice of the kept slots ``b_slot``; rows from ``count`` on are not read."""
    p_from = rows_at(p_base, b_slot, m_row, o_column, layout, PAGED, UNIT)
    return tl.load(p_from, mask=m_row[:, None] & m_column[None, :])


@triton.jit
def store_chunk(
    p_base,
    b_chunk,
    o_row,
    m_row,
    o_column,
    m_column,
    layout,
    PAGED: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Stores behind a barrier: every thread has loaded its part of this chunk and of all before."""
    p_to = rows_at(p_base, o_row, m_row, o_column, layout, PAGED, UNIT)
    tl.debug_barrier()
    tl.store(p_to, b_chunk, mask=m_row[:, None] & m_column[None, :])


@triton.jit
def move_rows(
    p_base,
    p_keep,
    first,
    count,
    columns,
    layout,
    PAGED: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Moves slots ``keep[first:count]`` of one slice to the places from ``first`` on.

    Kept slots ascend strictly, so keep[j] >= j. A store to place i spoils a load of keep[j] only
    where keep[j] = i, hence j <= i: never a load of a later chunk, which may therefore be under
    way early, and in the chunk itself only before the barrier, which every thread reaches after its
    loads and before its stores. Loads of earlier chunks lie before earlier barriers.

    Two chunks take turns in registers of their own: a single one, carried from turn to turn, would
    be copied at the end of each, and the copy would wait for the load. ROWS below the number of
    threads keeps the list in registers too; else it passes through shared memory and two barriers.
    """
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < columns
    o_even = first + tl.arange(0, ROWS)
    o_odd = o_even + ROWS
    b_slot = tl.load(p_keep + o_even, mask=o_even < count, other=0)
    b_even = load_chunk(p_base, b_slot, o_even < count, o_column, m_column, layout, PAGED, UNIT)
    b_slot = tl.load(p_keep + o_odd, mask=o_odd < count, other=0)
    for start in tl.range(first, count, 2 * ROWS, num_stages=1):
        o_even = start + tl.arange(0, ROWS)
        o_odd = o_even + ROWS
        o_later = o_odd + ROWS
        m_even, m_odd, m_later = o_even < count, o_odd < count, o_later < count
        b_later = tl.load(p_keep + o_later, mask=m_later, other=0)
        b_odd = load_chunk(p_base, b_slot, m_odd, o_column, m_column, layout, PAGED, UNIT)
        store_chunk(p_base, b_even, o_even, m_even, o_column, m_column, layout, PAGED, UNIT)
        b_slot = tl.load(p_keep + o_later + ROWS, mask=o_later + ROWS < count, other=0)
        b_even = load_chunk(p_base, b_later, m_later, o_column, m_column, layout, PAGED, UNIT)
        store_chunk(p_base, b_odd, o_odd, m_odd, o_column, m_column, layout, PAGED, UNIT)


# fmt: off
SIZES = [  # of compact_kv_kernel: no variant of its own for any value or alignment
    "p_keep", "p_counts", "p_status", "p_table", "p_users", "p_freed", "tensors", "heads", "slices",
    "units", "width", "length", "outer_stride", "head_stride", "slot_stride", "block_size",
    "blocks", "table_width",
]
MARK_SIZES = [
    "p_keep", "p_counts", "p_table", "p_users", "width", "block_size", "blocks", "table_width",
]
# fmt: on


@triton.jit(do_not_specialize=SIZES)
def compact_kv_kernel(
    addresses,
    p_keep,
    p_counts,
    p_status,
    p_table,
    p_users,
    p_freed,
    tensors,
    heads,
    slices,
    units,
    width,
    length,
    outer_stride,
    head_stride,
    slot_stride,
    block_size,
    blocks,
    table_width,
    N: tl.constexpr,
    PAGED: tl.constexpr,
    UNIT: tl.constexpr,
    ELEMENT: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Strides count ELEMENTs, ``units`` the UNITs of a row; SLICE and UNIT are bytes."""
    PAIR: tl.constexpr = UNIT // (ELEMENT.primitive_bitwidth // 8)
    COLUMNS: tl.constexpr = SLICE // UNIT * PAIR
    task = tl.program_id(0)
    i_slice = task % slices
    i_head = task // slices % heads
    i_tensor = task // slices // heads % tensors
    i_batch = (task // slices // heads // tensors).to(tl.int64)
    p_keep += i_batch * width
    p_table += i_batch * table_width
    count = tl.load(p_counts + i_batch)
    first = count
    bits = COUNTS
    if (count >= 0) & (count <= width):
        first = first_moved(p_keep, count, length, CHECK)
        bits = tl.where(first < 0, KEEP, 0)
        if PAGED:  # noqa: SIM102
            if (first >= 0) & (count > 0):
                used = tl.load(p_keep + count - 1) // block_size + 1
                if not good_table(p_table, p_users, used, blocks, CHECK):
                    bits = BLOCK_TABLE
    held = (count + block_size - 1) // block_size
    if bits != 0:
        tl.atomic_or(p_status, bits, sem="relaxed")
        held = table_width
        first = 0
        count = 0
    if PAGED:  # noqa: SIM102
        if (i_slice == 0) & (i_head == 0) & (i_tensor == 0):
            write_freed(p_freed + i_batch * table_width, p_table, held, table_width, CHECK)
    offset = i_head.to(tl.int64) * head_stride + i_slice * COLUMNS
    if not PAGED:
        offset += i_batch * outer_stride
    p_base = pick(addresses, i_tensor, N).to(tl.pointer_type(ELEMENT)) + offset
    columns = (units - i_slice * (SLICE // UNIT)) * PAIR
    layout = (p_table, block_size, outer_stride, slot_stride)
    move_rows(p_base, p_keep, first, count, columns, layout, PAGED, UNIT, ROWS, COLUMNS)


@triton.jit(do_not_specialize=MARK_SIZES)
def mark_users_kernel(
    p_keep,
    p_counts,
    p_table,
    p_users,
    width,
    block_size,
    blocks,
    table_width,
    CHECK: tl.constexpr,
):
    """Adds up in ``p_users`` how often each block occurs up to the last kept slots."""
    i_batch = tl.program_id(0).to(tl.int64)
    count = tl.load(p_counts + i_batch)
    m_count = (count > 0) & (count <= width)
    last = tl.load(p_keep + i_batch * width + count - 1, mask=m_count, other=-1)
    j = tl.program_id(1) * CHECK + tl.arange(0, CHECK)
    m_j = (j < table_width) & (last >= 0) & (j <= last // block_size)
    b_block = tl.load(p_table + i_batch * table_width + j, mask=m_j, other=-1)
    m_exists = (b_block >= 0) & (b_block < blocks)
    tl.atomic_add(p_users + b_block, 1, mask=m_exists, sem="relaxed")
