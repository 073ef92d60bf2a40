"""Exact selection inside one segment of any size: the bracket around the wanted rank.

A segment that fits a block (up to 16 384) stays in registers as float32 values. All pairs of a
strided sample guess a bracket; then each pass counts above two pivots, in floating point, where
NaN and -0 need no care. Of a longer one, passes over memory count, and set aside the values inside
the bracket, which then fit a block. Counts decide, so the answer does not depend on the guesses;
only the time does: 7 to 9 passes for 16 384 scores, 5 to 6 for 1 024.

Instructions per warp (sm_90, 32 values per thread): a pass 222, of which 64 FSET and 64 FADD are
the values' (512 clocks of 16 warps), and 3 barriers; the guess 200. Tried on paper or in machine
code: int32 keys (twice the compare and add, and 6 to make a key); a search in the sample by passes
(6 to 7 of them, where all pairs take one); radix digits by `tl.histogram` (9 000 clocks for 16 384
keys); bisection or thirds of the key range; setting aside at once, 2 048 keys per block (19 us).
"""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels.triton_kernels._select_block import (
    NAN_KEY,
    TOP_KEY,
    guess,
    load_block,
    narrow,
    next_pivots,
    pivot_value,
    split,
)


@triton.jit
def load_tile(p_value, start, size, ROW: tl.constexpr, TILE: tl.constexpr):
    """float32 ``[TILE // ROW, ROW]`` from ``start`` on, NaN after the end; and its places.

    A row has one element per thread, so that sums along the first dimension stay in a thread.
    """
    i_tile = tl.arange(0, TILE // ROW)[:, None] * ROW + tl.arange(0, ROW)[None, :] + start
    return tl.load(p_value + i_tile, mask=i_tile < size, other=float("nan")), i_tile


@triton.jit
def set_aside(p_value, p_scratch, size, first, second, ROW: tl.constexpr, TILE: tl.constexpr):
    """Counts below two pivots over a whole segment, and copies what lies between them.

    Returns:
        How many keys are below ``first``, and how many between; these are in the scratch buffer, in
        any order.
    """
    first_value = pivot_value(first)
    second_value = pivot_value(second)
    start = tl.full([], 0, tl.int32)
    n_from = tl.full([], 0, tl.int32)
    n_between = tl.full([], 0, tl.int32)
    while start < size:
        b_value, _i_tile = load_tile(p_value, start, size, ROW, TILE)
        b_from = (b_value >= first_value).to(tl.int32)
        m_between = (b_value >= first_value) & ((b_value >= second_value) == 0)
        b_between = m_between.to(tl.int32)
        b_sum = tl.sum(b_between, 0)
        b_row = n_between + tl.cumsum(b_sum, 0) - b_sum
        b_place = b_row[None, :] + tl.cumsum(b_between, 0) - b_between
        # In one dimension, where no layout but the present one suggests itself.
        p_place = p_scratch + tl.reshape(b_place, [TILE])
        tl.store(p_place, tl.reshape(b_value, [TILE]), mask=tl.reshape(m_between, [TILE]))
        both = tl.sum(b_sum + (tl.sum(b_from, 0) << 16))
        n_between += both & 0xFFFF
        n_from += both >> 16
        start += TILE
    tl.debug_barrier()  # what other threads of this program stored is read next
    return size - n_from, n_between


@triton.jit
def search_segment(
    p_value,
    p_scratch,
    size,
    rank,
    first,
    second,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Bracket of one key value, or of at most BLOCK keys, which are in the scratch buffer."""
    low = tl.full([], NAN_KEY, tl.int32)
    high = tl.full([], TOP_KEY, tl.int32)
    below = tl.full([], 0, tl.int32)
    upto = size
    going = low < high  # true
    while going:
        count = upto - below
        n_first, n_between = set_aside(p_value, p_scratch, size, first, second, ROW, TILE)
        n_second = n_first + n_between
        low, high, below, upto = split(
            low, high, below, upto, rank, first, second, n_first, n_second
        )
        found = (rank >= n_first) & (rank < n_second) & (n_between <= BLOCK)
        blind = (4 * (upto - below) > count).to(tl.int32)
        first, second = next_pivots(low, high, below, upto, rank, blind)
        going = (low < high) & (found == 0)
        if KEEP:
            going = going & (rank > below)
    return low, high, below, upto, first, second


@triton.jit
def select(
    p_value,
    p_scratch,
    size,
    rank,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    SAMPLE: tl.constexpr,
    ONE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Bracket of key number ``rank`` (0-based, ascending) of ``size >= 1`` float32 values.

    Without KEEP ``low == high`` is that key. With KEEP, [low, high] holds the lowest keys of rank
    or above: of the keys inside, ``upto - rank`` belong to the best ``size - rank``: all of them,
    or, if there is a choice, those of lowest index, and then they are all equal.

    Args:
        p_value: float32 ``[size]``.
        p_scratch: float32 ``[size]``, used where ``size > BLOCK``.
        ONE: whether ``size <= BLOCK`` is known.

    Returns:
        The register block, all values in their places if they fit; low, high: keys; ``below`` and
        ``upto``: how many keys are below low, and not above high (``below`` is not kept up to date
        if one of several different keys was picked).
    """
    low = tl.full([], NAN_KEY, tl.int32)
    high = tl.full([], TOP_KEY, tl.int32)
    below = tl.full([], 0, tl.int32)
    upto = size
    # Both loads under way at once.
    b_value = load_block(p_value, tl.where(size <= BLOCK, size, 0), BLOCK, ROW)
    first, second = guess(p_value, size, rank, SAMPLE)
    if ONE == 0:  # noqa: SIM102 - only this is known to the compiler
        if size > BLOCK:
            low, high, below, upto, first, second = search_segment(
                p_value, p_scratch, size, rank, first, second, BLOCK, ROW, TILE, KEEP
            )
            # Where the search is over these are not what they should be, and not looked at.
            b_value = load_block(p_scratch, upto - below, BLOCK, ROW)
    low, high, below, upto = narrow(b_value, low, high, below, upto, rank, first, second, KEEP)
    return b_value, low, high, below, upto
