"""Counting the gray levels of a cell, shared by the entropy kernels.

A program turns 32 quads (4 pixels each) at a time into a block of levels, ``[QUADS, 4]``, and
counts up to eight blocks at once into two accumulators. METHOD says how:

- COUNT_BALLOTS: ``tl.histogram`` (a warp vote per bit of the level); any number of warps. The only
  one for the interpreter, and the one the others are compared with.
- COUNT_BYTES, COUNT_BITS: the histogram as a matrix product of tensor cores. With ``h`` and ``l``
  the upper and lower four bits of each pixel, ``counts[16, 16] = onehot(h)^T onehot(l)``, exact in
  integers, and as fast whatever the levels are. Exactly one warp; a lane holds a quad of each
  block. `_histogram_asm` has the instructions, which triton has no words for.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from erase_kernels import _numerics, pixel_layout
from erase_kernels.triton_kernels import _histogram_asm as asm
from erase_kernels.triton_kernels import _launch

COUNT_BALLOTS = tl.constexpr(0)
COUNT_BYTES = tl.constexpr(1)
COUNT_BITS = tl.constexpr(2)

QUAD = tl.constexpr(4)  # pixels that lie side by side and are counted by one lane
BLOCKS = tl.constexpr(asm.BLOCKS)  # that can be counted at once

LUMA_RED = tl.constexpr(_numerics.LUMA_RED)
LUMA_GREEN = tl.constexpr(_numerics.LUMA_GREEN)
LUMA_BLUE = tl.constexpr(_numerics.LUMA_BLUE)
GRAY_LEVELS = tl.constexpr(_numerics.GRAY_LEVELS)
MAX_LEVEL = tl.constexpr(pixel_layout.MAX_LEVEL)
ENTROPY_UNIT = tl.constexpr(_numerics.ENTROPY_UNIT)

_FLOATS = tl.constexpr(asm.FLOATS)
_FLOATS_OF_TRIPLES = tl.constexpr(asm.FLOATS_OF_TRIPLES)
_TRIPLE_OPERANDS = tl.constexpr(asm.operands(12, "rrr").replace("=r", "=f"))
_RECOVER = tl.constexpr(asm.RECOVER)
MANY_CELLS = 8192  # from here on the device is full with several cells per program
INT32_MAX = 2**31 - 1

_LEVELS = tl.constexpr(asm.LEVELS)
_BYTE_TABLES = tl.constexpr(asm.BYTE_TABLES)
_BYTE_COUNT = tl.constexpr(asm.BYTE_COUNT)
_BYTE_SOLVE = tl.constexpr(asm.BYTE_SOLVE)
_BIT_TABLES = tl.constexpr(asm.BIT_TABLES)
_BIT_COUNT = tl.constexpr(asm.BIT_COUNT)
_BIT_SOLVE = tl.constexpr(asm.BIT_SOLVE)
_TABLE_OPERANDS = tl.constexpr(asm.operands(4, "r" * 4))
_BYTE_OPERANDS = tl.constexpr(asm.operands(8, "r" * 13))
_BIT_OPERANDS = tl.constexpr(asm.operands(8, "r" * 20))
_SOLVE_OPERANDS = tl.constexpr(asm.operands(8, "r" * 12))

_HALF_BITS = tl.constexpr(26)  # of an entropy sum, so that 32 lanes' lower halves fit 32 bits
_HALF_MASK = tl.constexpr((1 << 26) - 1)


@triton.jit
def luma(red, green, blue):
    """``(0.299 R + 0.587 G) + 0.114 B``; compile without fused multiply-adds."""
    return (red * LUMA_RED + green * LUMA_GREEN) + blue * LUMA_BLUE


@triton.jit
def floats(word, METHOD: tl.constexpr):
    """uint8 ``[QUADS, 4]`` as float32."""
    if METHOD == COUNT_BALLOTS:
        return word.to(tl.int32).to(tl.float32)
    else:
        return tl.inline_asm_elementwise(
            _FLOATS, "=f,=f,=f,=f,r", [word], dtype=tl.float32, is_pure=True, pack=4
        )


@triton.jit
def floats_of_triples(first, second, third):
    """Three words of four interleaved pixels -> red, green and blue, float32 ``[QUADS, 4]``."""
    return tl.inline_asm_elementwise(
        _FLOATS_OF_TRIPLES,
        _TRIPLE_OPERANDS,
        [first, second, third],
        dtype=(tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=4,
    )


@triton.jit
def recover(value, mean, std, scale, METHOD: tl.constexpr):
    """The level that a normalised value stands for, as float32, and how far it is from it."""
    if METHOD == COUNT_BALLOTS:
        exact = (value * std + mean) * scale
        level = tl.floor(tl.minimum(tl.maximum(exact + 0.5, 0.0), MAX_LEVEL))
        distance = tl.abs(exact - level)
    else:
        level, distance = tl.inline_asm_elementwise(
            _RECOVER,
            "=f,=f,f,f,f,f",
            [value, std, mean, scale],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return level, distance


@triton.jit
def levels(y, METHOD: tl.constexpr):
    """``floor(y)`` of ``[QUADS, 4]`` values in 0..255, in the form that `count` wants."""
    if METHOD == COUNT_BALLOTS:
        return y.to(tl.int32)
    else:
        return tl.inline_asm_elementwise(
            _LEVELS, "=r,f,f,f,f", [y], dtype=tl.int8, is_pure=True, pack=4
        )


@triton.jit
def no_levels(QUADS: tl.constexpr, METHOD: tl.constexpr):
    """A block of zeros."""
    return tl.zeros([QUADS, QUAD], tl.int32 if METHOD == COUNT_BALLOTS else tl.int8)


@triton.jit
def no_counts(QUADS: tl.constexpr, METHOD: tl.constexpr):
    """Both accumulators of an empty cell."""
    if METHOD == COUNT_BALLOTS:
        return tl.zeros([GRAY_LEVELS], tl.int32), tl.zeros([1], tl.int32)
    else:
        sums = tl.zeros([QUADS, QUAD], tl.int32)
        return sums, sums


@triton.jit
def lane_tables(QUADS: tl.constexpr, METHOD: tl.constexpr):
    """What `count` needs besides the levels; the same for all of them."""
    tables = tl.zeros([QUADS, QUAD], tl.int32)
    # Each lane's four registers differ, so this must not be taken for a function of its argument.
    if METHOD == COUNT_BYTES:
        tables = tl.inline_asm_elementwise(
            _BYTE_TABLES, _TABLE_OPERANDS, [tables], dtype=tl.int32, is_pure=False, pack=4
        )
    elif METHOD == COUNT_BITS:
        tables = tl.inline_asm_elementwise(
            _BIT_TABLES, _TABLE_OPERANDS, [tables], dtype=tl.int32, is_pure=False, pack=4
        )
    return tables


@triton.jit
def _count_block(low, high, block, tables, METHOD: tl.constexpr):
    if METHOD == COUNT_BALLOTS:
        low += tl.histogram(tl.reshape(block, [block.shape[0] * QUAD]), GRAY_LEVELS)
    else:
        low, high = tl.inline_asm_elementwise(
            _BYTE_COUNT,
            _BYTE_OPERANDS,
            [block, tables, low, high],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=4,
        )
    return low, high


@triton.jit
def count(low, high, blocks, tables, USED: tl.constexpr, METHOD: tl.constexpr):
    """Adds the first USED of eight blocks of levels to the accumulators.

    Returns:
        The accumulators. COUNT_BITS also counts the blocks that are not used, as zeros: see
        `counted`.
    """
    if METHOD == COUNT_BITS:
        low, high = tl.inline_asm_elementwise(
            _BIT_COUNT,
            _BIT_OPERANDS,
            [
                blocks[0], blocks[1], blocks[2], blocks[3],
                blocks[4], blocks[5], blocks[6], blocks[7],
                tables, low, high,
            ],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=4,
        )  # fmt: skip
    else:
        for i in tl.static_range(USED):
            low, high = _count_block(low, high, blocks[i], tables, METHOD)
    return low, high


@triton.jit
def counted(QUADS: tl.constexpr, USED: tl.constexpr, METHOD: tl.constexpr):
    """How many levels a call of `count` counts."""
    return QUADS * QUAD * (BLOCKS if METHOD == COUNT_BITS else USED)


@triton.jit
def entropy(low, high, blanks, p_table, pixels, METHOD: tl.constexpr):
    """Entropy in nats of a cell.

    Args:
        low, high: the accumulators.
        blanks: how many zeros were counted that are no pixels.
        p_table: int64 ``[pixels + 1]``.
        pixels: of the cell.
    """
    if METHOD == COUNT_BALLOTS:
        low -= tl.where(tl.arange(0, GRAY_LEVELS) == 0, blanks, 0)
        total = tl.sum(tl.load(p_table + low), axis=0)
    else:
        low, high = tl.inline_asm_elementwise(
            _BYTE_SOLVE if METHOD == COUNT_BYTES else _BIT_SOLVE,
            _SOLVE_OPERANDS,
            [tl.zeros_like(low) + blanks, low, high],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=4,
        )
        lanes = tl.sum(tl.load(p_table + low) + tl.load(p_table + high), axis=1)
        # Two sums of 32 bits are one instruction each, a 64-bit sum over the lanes is thirty.
        lower = tl.sum((lanes & _HALF_MASK).to(tl.int32), axis=0)
        upper = tl.sum((lanes >> _HALF_BITS).to(tl.int32), axis=0)
        total = (upper.to(tl.int64) << _HALF_BITS) + lower.to(tl.uint32).to(tl.int64)
    # One rounding in the conversion; the product with a power of two is exact.
    return (tl.load(p_table + pixels) - total).to(tl.float32) * ENTROPY_UNIT


def shape_class(cells: int) -> str:
    """Of a launch, in the configurations."""
    return "many" if cells >= MANY_CELLS else "few"


def count_settings(config: _launch.Config, quads: int) -> dict[str, Any]:
    """Constexprs and options of a launch over cells of ``quads`` quads."""
    settings: dict[str, Any] = {**config.arguments(), "enable_fp_fusion": False}
    if _launch.INTERPRETED:
        settings["METHOD"] = COUNT_BALLOTS.value
    blocks = _launch.cdiv(quads, settings["QUADS"])
    steps = _launch.cdiv(blocks, BLOCKS.value)
    return {**settings, "USED": _launch.cdiv(blocks, steps), "STEPS": min(steps, 2)}
