"""Entropy of the gray levels of every cell of an image processor's output.

As `patch_entropy`: a program takes CELLS consecutive cells, a step reads up to eight blocks of
QUADS quads and counts them. A quad is four values along the innermost pixel loop, one wide load
per channel where they lie together. Pixel loops are first sorted and joined on the host, so that a
patch of the Qwen layout is one run of values; only what the layout names is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._gray_of_pixels import block_of_pixels as _block
from erase_kernels.triton_kernels._histogram import (
    INT32_MAX,
    QUAD,
    count,
    count_settings,
    counted,
    entropy,
    lane_tables,
    no_counts,
    no_levels,
    shape_class,
)

KERNEL = "patch_entropy_from_pixels"

PIXELS = tl.constexpr(int(Status.PIXELS))


@triton.jit
def _blocks(place, first, worst, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, USED: tl.constexpr,
            QUADS: tl.constexpr, METHOD: tl.constexpr):  # fmt: skip
    """The USED blocks of a step, and zeros up to eight."""
    b0, worst = _block(place, first, worst, CHANNELS, VECTOR, QUADS, METHOD)
    b1 = no_levels(QUADS, METHOD)
    b2 = b1
    b3 = b1
    b4 = b1
    b5 = b1
    b6 = b1
    b7 = b1
    if USED > 1:
        b1, worst = _block(place, first + QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 2:
        b2, worst = _block(place, first + 2 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 3:
        b3, worst = _block(place, first + 3 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 4:
        b4, worst = _block(place, first + 4 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 5:
        b5, worst = _block(place, first + 5 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 6:
        b6, worst = _block(place, first + 6 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    if USED > 7:
        b7, worst = _block(place, first + 7 * QUADS, worst, CHANNELS, VECTOR, QUADS, METHOD)
    return (b0, b1, b2, b3, b4, b5, b6, b7), worst


@triton.jit
def _cell_entropy(
    place,
    worst,
    p_table,
    tables,
    pixels,
    quads,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    STEPS: tl.constexpr,
    USED: tl.constexpr,
    QUADS: tl.constexpr,
    METHOD: tl.constexpr,
):
    low, high = no_counts(QUADS, METHOD)
    steps = 1
    if STEPS == 1:  # without a loop, addresses are worked out once for all cells
        blocks, worst = _blocks(place, 0, worst, CHANNELS, VECTOR, USED, QUADS, METHOD)
        low, high = count(low, high, blocks, tables, USED, METHOD)
    else:
        step_quads = USED * QUADS
        steps = (quads + step_quads - 1) // step_quads
        for step in range(0, steps):
            first = step * step_quads
            blocks, worst = _blocks(place, first, worst, CHANNELS, VECTOR, USED, QUADS, METHOD)
            low, high = count(low, high, blocks, tables, USED, METHOD)
    blanks = steps * counted(QUADS, USED, METHOD) - pixels
    return entropy(low, high, blanks, p_table, pixels, METHOD), worst


_NUMBERS = (
    *(f"cell_size_{i}" for i in range(2)),
    *(f"cell_stride_{i}" for i in range(3)),
    *(f"pixel_size_{i}" for i in range(3)),
    *(f"pixel_stride_{i}" for i in range(4)),
    "cells",
)


# One by one: the numbers of a tuple are always specialised on.
@triton.jit(do_not_specialize=[*_NUMBERS, "scale", "tolerance"])
def patch_entropy_from_pixels_kernel(
    p_pixels,
    p_table,  # int64 [pixels of a cell + 1]
    p_entropy,  # f32 [cells]
    p_status,
    cell_size_0,  # of the two inner cell loops
    cell_size_1,
    cell_stride_0,  # of the three cell loops
    cell_stride_1,
    cell_stride_2,
    pixel_size_0,  # segments, rows and columns
    pixel_size_1,
    pixel_size_2,
    pixel_stride_0,  # of segments, rows, columns and channels
    pixel_stride_1,
    pixel_stride_2,
    pixel_stride_3,
    cells,
    mean,  # of three channels
    std,
    scale,
    tolerance,
    CHANNELS: tl.constexpr,  # 1 or 3
    VECTOR: tl.constexpr,  # whether every quad is aligned and in one piece
    STEPS: tl.constexpr,  # 1: a cell is one step; 2: one or more
    USED: tl.constexpr,  # blocks of a step
    CELLS: tl.constexpr,
    QUADS: tl.constexpr,
    METHOD: tl.constexpr,
):
    """Writes ``entropy`` of the cells of one program, and a status bit for values off any level."""
    tables = lane_tables(QUADS, METHOD)
    pixel_sizes = (pixel_size_0, pixel_size_1, pixel_size_2)
    pixel_strides = (pixel_stride_0, pixel_stride_1, pixel_stride_2, pixel_stride_3)
    quads_per_row = (pixel_size_2 + QUAD - 1) // QUAD
    rows = pixel_size_0 * pixel_size_1
    worst = tl.zeros([QUADS, QUAD], tl.float32)
    begin = tl.program_id(0) * CELLS
    for cell in range(begin, tl.minimum(begin + CELLS, cells)):
        run = cell // cell_size_1
        o_cell = (run // cell_size_0).to(tl.int64) * cell_stride_0
        o_cell += (run % cell_size_0).to(tl.int64) * cell_stride_1
        o_cell += (cell % cell_size_1).to(tl.int64) * cell_stride_2
        place = (p_pixels + o_cell, pixel_strides, pixel_sizes, quads_per_row, mean, std, scale)
        result, worst = _cell_entropy(
            place, worst, p_table, tables, rows * pixel_size_2, rows * quads_per_row,
            CHANNELS, VECTOR, STEPS, USED, QUADS, METHOD,
        )  # fmt: skip
        tl.store(p_entropy + cell, result)
    accepted = (worst <= tolerance).to(tl.int32)  # false for NaN too
    accepted = tl.min(tl.min(accepted, axis=1), axis=0)
    tl.atomic_or(p_status, PIXELS, mask=accepted == 0)


def patch_entropy_from_pixels(
    pixel_values: Tensor,
    table: Tensor,
    cell_sizes: Sequence[int],
    cell_strides: Sequence[int],
    pixel_sizes: Sequence[int],
    pixel_strides: Sequence[int],
    channel_stride: int,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
    tolerance: float,
) -> Tensor:
    """See `erase_kernels.patch_entropy_from_pixels`; the layout's numbers one by one."""
    outer = pixel_values.numel() // cell_strides[0]
    cells = outer * cell_sizes[0] * cell_sizes[1]
    result = pixel_values.new_empty(cells, dtype=torch.float32)
    if cells == 0:
        return result
    sizes, strides = _joined(pixel_sizes, pixel_strides)
    cell_loops = [
        stride for size, stride in zip((outer, *cell_sizes), cell_strides, strict=True) if size > 1
    ]
    vector = _vector(pixel_values, sizes, strides, (*cell_loops, channel_stride))
    device = result.device
    case = f"{shape_class(cells)} of {8 * pixel_values.element_size()} bits"
    config = _launch.config(KERNEL, case, _launch.architecture(device))
    settings = _settings(config, len(mean), vector, sizes)
    numbers = (*cell_sizes, *cell_strides, *sizes, *strides, channel_stride, cells)
    with _launch.on(device):
        patch_entropy_from_pixels_kernel[(_launch.cdiv(cells, settings["CELLS"]),)](
            p_pixels=pixel_values,
            p_table=table,
            p_entropy=result,
            p_status=status_word(device),
            **dict(zip(_NUMBERS, numbers, strict=True)),
            mean=_three(mean),
            std=_three(std),
            scale=scale,
            tolerance=tolerance,
            **settings,
        )
    return result


def _three(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(values[min(i, len(values) - 1)]) for i in range(3))


def _joined(sizes: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Sizes and strides of three loops over the same elements, in as few and as long runs.

    The order does not matter to a histogram, so they go from the largest stride to the smallest.
    """
    loops: list[tuple[int, int]] = []
    for stride, size in sorted(zip(strides, sizes, strict=True), reverse=True):
        if size == 1:
            continue
        if loops and loops[-1][1] == size * stride:
            size *= loops.pop()[0]
        loops.append((size, stride))
    loops = [(1, 0)] * (3 - len(loops)) + loops
    return tuple(size for size, _ in loops), tuple(stride for _, stride in loops)


def _vector(
    values: Tensor, sizes: Sequence[int], strides: Sequence[int], others: Sequence[int]
) -> bool:
    """Whether every quad is one aligned piece, and a cell's offsets fit 32 bits."""
    if sizes[2] % QUAD.value or strides[2] != 1:
        return False
    aligned = values.data_ptr() % (QUAD.value * values.element_size()) == 0
    aligned = aligned and all(stride % QUAD.value == 0 for stride in (*strides[:2], *others))
    reach = sum(size * stride for size, stride in zip(sizes, strides, strict=True))
    return aligned and reach <= INT32_MAX


def _settings(
    config: _launch.Config, channels: int, vector: bool, pixel_sizes: Sequence[int]
) -> dict[str, Any]:
    """Constexprs and options of a launch."""
    quads = math.prod(pixel_sizes[:2]) * _launch.cdiv(pixel_sizes[2], QUAD.value)
    return {**count_settings(config, quads), "CHANNELS": channels, "VECTOR": vector}


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every configuration, for the layouts and types there are."""
    variants = [
        ("qwen 14", 3, True, (1, 4, 196)),
        ("qwen 16", 3, True, (1, 4, 256)),
        ("tiles 28", 3, True, (1, 28, 28)),
        ("qwen 7", 3, False, (1, 4, 49)),
        ("gray tiles 60", 1, True, (1, 60, 60)),
    ]
    items = []
    for case in _launch.shape_classes(KERNEL):
        config = _launch.config(KERNEL, case, architecture)
        for dtype in ("fp16", "bf16") if "16 bits" in case else ("fp32",):
            for name, channels, vector, sizes in variants:
                settings = _settings(config, channels, vector, sizes)
                options = {key: settings.pop(key) for key in (*config.options, "enable_fp_fusion")}
                items.append(
                    _launch.Compilation(
                        name=f"{KERNEL} {case}, {name}, {dtype}",
                        kernel=patch_entropy_from_pixels_kernel,
                        signature={**_signature(dtype), **dict.fromkeys(settings, "constexpr")},
                        constexprs=settings,
                        options=options,
                        luma=True,
                    )
                )
    return items


def _signature(dtype: str) -> dict[str, Any]:
    return {
        "p_pixels": f"*{dtype}",
        "p_table": "*i64",
        "p_entropy": "*fp32",
        "p_status": "*i32",
        **dict.fromkeys(_NUMBERS, "i32"),
        "mean": ("fp32",) * 3,
        "std": ("fp32",) * 3,
        "scale": "fp32",
        "tolerance": "fp32",
    }
