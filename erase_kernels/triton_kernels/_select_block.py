"""Exact selection in a register block: order keys, pivots, the bracket of a rank."""

from __future__ import annotations

import triton
import triton.language as tl

NAN_KEY = tl.constexpr(-(2**31))  # below the key of -inf
TOP_KEY = tl.constexpr(0x7F800000)  # +inf
LOWEST_NUMBER = tl.constexpr(-0x7F800000)  # -inf
PADDING = tl.constexpr(0x7FFFFFFF)  # above every key: never counted below a pivot
NAN_BITS = tl.constexpr(0x7FC00000)  # the quiet NaN that the reference returns

MARGIN = tl.constexpr(0.06)  # of the bracket's keys, on both sides of an interpolated rank
THIRD = tl.constexpr(1.0 / 3.0)
SPREAD = tl.constexpr(16)  # a sample's guess reaches a sixteenth of it to both sides
PACK = tl.constexpr(4)  # rows whose counts of a warp share an int32
PAIR = tl.constexpr(65536.0)  # weight of the second of two counts in a float


@triton.jit
def order_key(b_value):
    """int32 keys in the order of float32 values: -0 equals +0, every NaN is the lowest."""
    b_bits = b_value.to(tl.int32, bitcast=True)
    b_magnitude = b_bits & 0x7FFFFFFF
    b_key = tl.where(b_bits < 0, -b_magnitude, b_magnitude)
    return tl.where(b_magnitude > TOP_KEY, NAN_KEY, b_key)


@triton.jit
def key_value(key):
    """Inverse of `order_key`; the lowest key is a quiet NaN."""
    bits = tl.where(key < 0, (-key) | NAN_KEY, key)
    return tl.where(key == NAN_KEY, NAN_BITS, bits).to(tl.float32, bitcast=True)


@triton.jit
def pivot_value(pivot):
    """A float that takes a pivot's place: ``not (x >= it)`` says whether x's key is below.

    For pivots above `NAN_KEY`; those up to -inf have NaN alone below them, and above +inf is a NaN,
    below which is everything. No key is computed that way, and NaN and -0 need no care.
    """
    legal = tl.maximum(pivot, LOWEST_NUMBER)
    return tl.where(pivot > TOP_KEY, float("nan"), key_value(legal))


@triton.jit
def block_index(BLOCK: tl.constexpr, ROW: tl.constexpr):
    """Places of a block's values, ascending row by row: int32 ``[rows, columns]``.

    Rows come in fours; the first dimension stays in a thread. Two dimensions: of more, some
    versions of the compiler put the wrong ones into a thread.
    """
    COLUMNS: tl.constexpr = ROW if ROW * PACK <= BLOCK else BLOCK // PACK
    return tl.arange(0, BLOCK // COLUMNS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def load_block(p_value, size, BLOCK: tl.constexpr, ROW: tl.constexpr):
    """float32 values, in the places of `block_index`; NaN, which no count sees, after the end."""
    i_key = block_index(BLOCK, ROW)
    return tl.load(p_value + i_key, mask=i_key < size, other=float("nan"))


@triton.jit
def count_from(b_value, first, second):
    """How many values of a block are not below each of two pivots: one reduction."""
    first_value = pivot_value(first)
    second_value = pivot_value(second)
    b_first = tl.sum((b_value >= first_value).to(tl.float32), 0)
    b_second = tl.sum((b_value >= second_value).to(tl.float32), 0)
    packed = tl.sum((b_first + b_second * PAIR).to(tl.int32))  # a thread has 128 at most
    return packed & 0xFFFF, packed >> 16


@triton.jit
def pivot_at(low, high, fraction):
    """A pivot in (low, high], about ``fraction`` of the way; any float gives a legal one."""
    half = ((high >> 1) - (low >> 1)).to(tl.float32)
    step = (tl.minimum(tl.maximum(fraction, 0.0), 0.999) * half).to(tl.int32)
    return tl.minimum(low + 1 + step + step, high)


@triton.jit
def next_pivots(low, high, below, upto, rank, blind):
    """Two ascending pivots in (low, high]: around the interpolated rank, or at thirds if blind.

    As long as there may be NaN in the bracket, the first one parts them from the numbers.
    """
    share = (rank - below).to(tl.float32) / (upto - below).to(tl.float32)
    first = pivot_at(low, high, tl.where(blind != 0, THIRD, share - MARGIN))
    second = pivot_at(low, high, tl.where(blind != 0, 2 * THIRD, share + MARGIN))
    first = tl.where(low == NAN_KEY, LOWEST_NUMBER, first)
    return first, tl.maximum(first, second)


@triton.jit
def split(low, high, below, upto, rank, first, second, n_first, n_second):
    """The part of a bracket that holds ``rank``, after counting below two ascending pivots."""
    left = rank < n_first
    right = rank >= n_second
    before = tl.where(first <= LOWEST_NUMBER, NAN_KEY, first - 1)
    new_low = tl.where(left, low, tl.where(right, second, first))
    new_high = tl.where(left, before, tl.where(right, high, second - 1))
    new_below = tl.where(left, below, tl.where(right, n_second, n_first))
    new_upto = tl.where(left, n_first, tl.where(right, upto, n_second))
    return new_low, new_high, new_below, new_upto


@triton.jit
def snap(b_value, low, high, below, upto, rank):
    """Moves both ends of a bracket of numbers onto keys; a rank at an end then is that key."""
    # Something is inside, so that one end is enough to find the other.
    b_first = tl.where(b_value >= pivot_value(low), b_value, float("inf"))
    b_last = tl.where(b_value <= pivot_value(high), b_value, float("-inf"))
    b_first = tl.min(b_first, 0)
    b_last = tl.max(b_last, 0)
    first = tl.min(order_key(b_first))
    last = tl.max(order_key(b_last))
    return tl.where(rank == upto - 1, last, first), tl.where(rank == below, first, last)


@triton.jit
def narrow(b_value, low, high, below, upto, rank, first, second, KEEP: tl.constexpr):
    """Shrinks the bracket of ``rank`` among the values of a register block, from two pivots on.

    Invariant: ``below`` keys are under ``low`` and ``upto`` keys are not above ``high`` (at first,
    the block has all from below to upto), ``below <= rank < upto``. Ends when one key value is
    left, or (KEEP) when all of them are wanted. Pivots lie in (low, high], so every pass shrinks
    the range by one at least; after a bad guess they cut it in thirds, which bounds the passes by
    about 40 whatever the keys.
    """
    total = upto
    snapping = tl.full([], 0, tl.int32)
    blind = tl.full([], 0, tl.int32)
    going = low < high
    if KEEP:
        going = going & (rank > below)
    while going:
        if snapping != 0:
            low, high = snap(b_value, low, high, below, upto, rank)
            snapping = tl.full([], 0, tl.int32)
        else:
            count = upto - below
            n_first, n_second = count_from(b_value, first, second)
            low, high, below, upto = split(
                low, high, below, upto, rank, first, second, total - n_first, total - n_second
            )
            blind = (4 * (upto - below) > count).to(tl.int32)
            at_edge = (upto - below == count) | (rank == below) | (rank == upto - 1)
            snapping = (at_edge & (low != NAN_KEY)).to(tl.int32)
        first, second = next_pivots(low, high, below, upto, rank, blind)
        going = low < high
        if KEEP:
            going = going & (rank > below)
    return low, high, below, upto


@triton.jit
def guess(p_value, size, rank, SAMPLE: tl.constexpr):
    """Two ascending pivots around ``rank`` from a sample, all pairs of which are compared.

    The second one may be above every key.
    """
    COPIES: tl.constexpr = 4  # as many of the sample as occupy the threads
    i_copies = (tl.arange(0, COPIES * SAMPLE) % SAMPLE).to(tl.int64) * size // SAMPLE
    b_copies = order_key(tl.load(p_value + i_copies.to(tl.int32)))
    b_copies = tl.reshape(b_copies, [COPIES, SAMPLE])
    b_key = tl.max(b_copies, 0)
    # The first dimension of the pairs stays in a thread.
    b_other = tl.reshape(b_key, [SAMPLE // COPIES, COPIES])[:, :, None]
    b_below = tl.sum((b_other < b_copies[None, :, :]).to(tl.int32), 0)
    b_below = tl.sum(b_below, 0)
    wanted = (rank.to(tl.int64) * SAMPLE // size).to(tl.int32)
    last = wanted + SAMPLE // SPREAD
    first = tl.max(tl.where(b_below <= wanted - SAMPLE // SPREAD, b_key, NAN_KEY))
    second = tl.max(tl.where(b_below <= last, b_key, NAN_KEY))
    second = tl.where(last >= SAMPLE, TOP_KEY, second) + 1
    first = tl.maximum(first, LOWEST_NUMBER)  # below it is NaN alone
    return first, tl.maximum(first, second)
