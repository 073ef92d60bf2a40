"""Gray levels of a block of quads of an image, for `patch_entropy`."""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels.triton_kernels._histogram import (
    QUAD,
    floats,
    floats_of_triples,
    levels,
    luma,
)

# How quads lie in memory.
ANY_STRIDES = tl.constexpr(0)  # bytes
PLANES = tl.constexpr(1)  # a quad is a word of each channel
TRIPLES = tl.constexpr(2)  # a quad is three words, its pixels interleaved


@triton.jit
def _load_words(p_rows, m_row):
    """uint8 ``[QUADS, 4]``, one aligned word per quad; 0 outside of the cell."""
    pointers = p_rows[:, None] + tl.arange(0, QUAD)[None, :]
    pointers = tl.max_contiguous(tl.multiple_of(pointers, (QUAD, QUAD)), (1, QUAD))
    return tl.load(pointers, mask=m_row[:, None], other=0)


@triton.jit
def _gray_of_planes(p_rows, m_row, channel_stride, CHANNELS: tl.constexpr, METHOD: tl.constexpr):
    """``[QUADS, 4]``, each quad one word per channel."""
    y = floats(_load_words(p_rows, m_row), METHOD)
    if CHANNELS == 3:
        green = floats(_load_words(p_rows + channel_stride, m_row), METHOD)
        blue = floats(_load_words(p_rows + 2 * channel_stride, m_row), METHOD)
        y = luma(y, green, blue)
    return y


@triton.jit
def _gray_of_triples(p_rows, m_row):
    """``[QUADS, 4]``, each quad three words."""
    first = _load_words(p_rows, m_row)
    second = _load_words(p_rows + QUAD, m_row)
    third = _load_words(p_rows + 2 * QUAD, m_row)
    red, green, blue = floats_of_triples(first, second, third)
    return luma(red, green, blue)


@triton.jit
def _gray_of_bytes(p_rows, m_pixel, channel_stride, column_stride, CHANNELS: tl.constexpr):
    """``[QUADS, 4]`` with any strides."""
    pointers = p_rows[:, None] + (tl.arange(0, QUAD) * column_stride)[None, :]
    # By way of 32 bits: the conversion from 8 is four times slower.
    y = tl.load(pointers, mask=m_pixel, other=0).to(tl.int32).to(tl.float32)
    if CHANNELS == 3:
        pointers += channel_stride
        green = tl.load(pointers, mask=m_pixel, other=0).to(tl.int32).to(tl.float32)
        pointers += channel_stride
        blue = tl.load(pointers, mask=m_pixel, other=0).to(tl.int32).to(tl.float32)
        y = luma(y, green, blue)
    return y


@triton.jit
def block_of_image(
    p_cell,
    strides,  # of channel, row, column
    first,
    quads_per_row,
    patch_size,
    CHANNELS: tl.constexpr,
    ACCESS: tl.constexpr,
    QUADS: tl.constexpr,
    METHOD: tl.constexpr,
):
    """Gray levels of the QUADS quads from number ``first`` on; 0 outside of the cell."""
    index = first + tl.arange(0, QUADS)
    o_row = index // quads_per_row
    o_quad = index % quads_per_row
    m_row = o_row < patch_size
    if ACCESS == ANY_STRIDES:
        o_column = o_quad * QUAD
        p_rows = p_cell + o_row.to(tl.int64) * strides[1] + o_column.to(tl.int64) * strides[2]
        m_pixel = m_row[:, None] & (o_column[:, None] + tl.arange(0, QUAD)[None, :] < patch_size)
        y = _gray_of_bytes(p_rows, m_pixel, strides[0], strides[2], CHANNELS)
    elif ACCESS == PLANES:
        p_rows = p_cell + (o_row * strides[1].to(tl.int32) + o_quad * QUAD)
        y = _gray_of_planes(p_rows, m_row, strides[0], CHANNELS, METHOD)
    else:
        p_rows = p_cell + (o_row * strides[1].to(tl.int32) + o_quad * (3 * QUAD))
        y = _gray_of_triples(p_rows, m_row)
    return levels(y, METHOD)
