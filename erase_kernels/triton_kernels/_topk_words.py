"""The kept indices of a segment longer than a register block: one bit per score, then places."""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels.triton_kernels._select import load_tile
from erase_kernels.triton_kernels._select_block import NAN_KEY, pivot_value

WORD = tl.constexpr(32)  # flags in an int32, threads in a warp


@triton.jit
def pack_words(b_flag, ROW: tl.constexpr, TILE: tl.constexpr):
    """Flags 0 or 1 ``[TILE // ROW, ROW]`` as words of 32: int32 ``[TILE // ROW, ROW // 32]``."""
    b_flag = tl.reshape(b_flag, [TILE // ROW, ROW // WORD, WORD])
    return tl.sum(b_flag << tl.arange(0, WORD)[None, None, :], 2)


@triton.jit
def mark_kept(
    p_score, p_word, n_words, size, low, high, choose, ROW: tl.constexpr, TILE: tl.constexpr
):
    """One bit per score: kept. If there is a choice, also one per tie, ``n_words`` words on."""
    low_value = pivot_value(low)
    from_nan = (low == NAN_KEY).to(tl.int32)  # no value stands for this pivot
    next_value = pivot_value(high + 1)
    i_column = tl.arange(0, ROW // WORD)[None, :]
    start = tl.full([], 0, tl.int32)
    while start < size:
        b_value, i_tile = load_tile(p_score, start, size, ROW, TILE)
        i_word = start // WORD + tl.arange(0, TILE // ROW)[:, None] * (ROW // WORD) + i_column
        b_from = tl.where(i_tile < size, (b_value >= low_value).to(tl.int32) | from_nan, 0)
        b_word = pack_words(b_from, ROW, TILE)
        if choose:
            b_above = (b_value >= next_value).to(tl.int32)
            b_tie = pack_words(b_from - b_above, ROW, TILE)
            b_word -= b_tie
            tl.store(p_word + n_words + i_word, b_tie, mask=i_word < n_words)
        tl.store(p_word + i_word, b_word, mask=i_word < n_words)
        start += TILE
    tl.debug_barrier()  # words are read by other threads than wrote them


@triton.jit
def count_bits(b_word):
    """Set bits of int32 words."""
    b_pairs = b_word - ((b_word >> 1) & 0x55555555)
    b_fours = (b_pairs & 0x33333333) + ((b_pairs >> 2) & 0x33333333)
    b_eights = (b_fours + (b_fours >> 4)) & 0x0F0F0F0F
    return (b_eights * 0x01010101) >> 24


@triton.jit
def lowest_bits(b_word, b_wanted):
    """The ``b_wanted`` lowest set bits of words."""
    b_kept = tl.zeros_like(b_word)
    for bit in tl.static_range(WORD):
        b_taken = ((b_word >> bit) & 1) & (b_wanted > 0).to(tl.int32)
        b_wanted -= b_taken
        b_kept |= b_taken << bit
    return b_kept


@triton.jit
def write_marked(p_word, n_words, p_index, room, wanted, choose, ROW: tl.constexpr):
    """Writes the places of set bits, ascending; if there is a choice, of the first ties too."""
    i_row = tl.arange(0, ROW)
    start = tl.full([], 0, tl.int32)
    filled = tl.full([], 0, tl.int32)
    while start < n_words:
        i_word = start + i_row
        b_word = tl.load(p_word + i_word, mask=i_word < n_words, other=0)
        if choose:
            b_tie = tl.load(p_word + n_words + i_word, mask=i_word < n_words, other=0)
            b_count = count_bits(b_tie)
            b_word |= lowest_bits(b_tie, wanted - (tl.cumsum(b_count, 0) - b_count))
            wanted -= tl.sum(b_count)
        b_count = count_bits(b_word)
        b_place = filled + tl.cumsum(b_count, 0) - b_count
        # Overlapping segments, which are an error, disturb each other's words: stay inside.
        b_word = tl.where(b_place + b_count <= room, b_word, 0)
        for bit in tl.static_range(WORD):
            b_bit = (b_word >> bit) & 1
            tl.store(p_index + b_place, i_word * WORD + bit, mask=b_bit != 0)
            b_place += b_bit
        filled += tl.sum(b_count)
        start += ROW
