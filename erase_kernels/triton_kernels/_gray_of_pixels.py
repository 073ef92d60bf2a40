"""Gray levels of a block of quads of a processor's output, for `patch_entropy_from_pixels`."""

from __future__ import annotations

import triton
import triton.language as tl

from erase_kernels.triton_kernels._histogram import QUAD, levels, luma, recover


@triton.jit
def _level(p_rows, o_pixel, m_pixel, mean, std, scale, VECTOR: tl.constexpr, METHOD: tl.constexpr):
    """Recovered levels as float32 ``[QUADS, 4]``, and how far the values are from them."""
    pointers = p_rows[:, None] + o_pixel[None, :]
    if VECTOR:
        bytes_of_quad: tl.constexpr = QUAD * p_rows.dtype.element_ty.primitive_bitwidth // 8
        pointers = tl.multiple_of(pointers, (bytes_of_quad, bytes_of_quad))
        pointers = tl.max_contiguous(pointers, (1, QUAD))
    value = tl.load(pointers, mask=m_pixel, other=0).to(tl.float32)
    return recover(value, mean, std, scale, METHOD)


@triton.jit
def _farther(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def block_of_pixels(place, first, worst, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
           QUADS: tl.constexpr, METHOD: tl.constexpr):  # fmt: skip
    """Gray levels of the QUADS quads from number ``first`` on, 0 outside of the cell; `worst`."""
    p_cell, strides, sizes, quads_per_row, mean, std, scale = place
    index = first + tl.arange(0, QUADS)
    o_row = index // quads_per_row
    o_column = index % quads_per_row * QUAD
    o_pixel = tl.arange(0, QUAD)
    m_row = (o_row < sizes[0] * sizes[1])[:, None]
    if VECTOR:  # offsets inside of a cell fit 32 bits
        o_first = o_row // sizes[1] * strides[0].to(tl.int32)
        o_first += o_row % sizes[1] * strides[1].to(tl.int32) + o_column
        m_pixel = m_row  # one for a wide load
    else:
        o_first = (o_row // sizes[1]).to(tl.int64) * strides[0]
        o_first += (o_row % sizes[1]).to(tl.int64) * strides[1]
        o_first += o_column.to(tl.int64) * strides[2]
        m_pixel = m_row & (o_column[:, None] + o_pixel[None, :] < sizes[2])
        o_pixel = o_pixel.to(tl.int64) * strides[2]
    p_rows = p_cell + o_first
    y, distance = _level(p_rows, o_pixel, m_pixel, mean[0], std[0], scale, VECTOR, METHOD)
    if CHANNELS == 3:
        p_rows += strides[3]
        green, off = _level(p_rows, o_pixel, m_pixel, mean[1], std[1], scale, VECTOR, METHOD)
        distance = _farther(distance, off)
        p_rows += strides[3]
        blue, off = _level(p_rows, o_pixel, m_pixel, mean[2], std[2], scale, VECTOR, METHOD)
        distance = _farther(distance, off)
        y = luma(y, green, blue)
    worst = _farther(worst, tl.where(m_pixel, distance, 0.0))
    return levels(tl.where(m_pixel, y, 0.0), METHOD), worst
