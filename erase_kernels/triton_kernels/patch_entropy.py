"""Entropy of the gray levels of every patch of a batch of images.

A program takes CELLS consecutive cells of one image, one after the other. A cell is cut into quads,
four neighbouring pixels of a row; a step reads up to eight blocks of QUADS quads, all loads before
the first is used, and counts them. Where quads lie in aligned memory they are 32-bit words. The
images of a batch are tuples passed by value; those of one layout share a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._gray_of_images import ANY_STRIDES, PLANES, TRIPLES
from erase_kernels.triton_kernels._gray_of_images import block_of_image as _block
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
from erase_kernels.triton_kernels._odd import odd, plain

KERNEL = "patch_entropy"
BUCKETS = (1, 4, 16, 64)  # numbers of images a launch is compiled for
FIELDS = tl.constexpr(8)  # of an image, in the order of `_Image.geometry`


@triton.jit
def _blocks(place, first, CHANNELS: tl.constexpr, ACCESS: tl.constexpr, USED: tl.constexpr,
            QUADS: tl.constexpr, METHOD: tl.constexpr):  # fmt: skip
    """The USED blocks of a step, and zeros up to eight."""
    p, s, n, size = place
    b0 = _block(p, s, first, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    b1 = no_levels(QUADS, METHOD)
    b2 = b1
    b3 = b1
    b4 = b1
    b5 = b1
    b6 = b1
    b7 = b1
    if USED > 1:
        b1 = _block(p, s, first + QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 2:
        b2 = _block(p, s, first + 2 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 3:
        b3 = _block(p, s, first + 3 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 4:
        b4 = _block(p, s, first + 4 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 5:
        b5 = _block(p, s, first + 5 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 6:
        b6 = _block(p, s, first + 6 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    if USED > 7:
        b7 = _block(p, s, first + 7 * QUADS, n, size, CHANNELS, ACCESS, QUADS, METHOD)
    return b0, b1, b2, b3, b4, b5, b6, b7


@triton.jit
def _cell_entropy(
    p_cell,
    strides,
    p_table,
    tables,
    patch_size,
    CHANNELS: tl.constexpr,
    ACCESS: tl.constexpr,
    STEPS: tl.constexpr,
    USED: tl.constexpr,
    QUADS: tl.constexpr,
    METHOD: tl.constexpr,
):
    quads_per_row = (patch_size + QUAD - 1) // QUAD
    place = (p_cell, strides, quads_per_row, patch_size)
    low, high = no_counts(QUADS, METHOD)
    steps = 1
    if STEPS == 1:  # without a loop, addresses are worked out once for all cells
        blocks = _blocks(place, 0, CHANNELS, ACCESS, USED, QUADS, METHOD)
        low, high = count(low, high, blocks, tables, USED, METHOD)
    else:
        step_quads = USED * QUADS
        steps = (patch_size * quads_per_row + step_quads - 1) // step_quads
        for step in range(0, steps):
            blocks = _blocks(place, step * step_quads, CHANNELS, ACCESS, USED, QUADS, METHOD)
            low, high = count(low, high, blocks, tables, USED, METHOD)
    pixels = patch_size * patch_size
    blanks = steps * counted(QUADS, USED, METHOD) - pixels
    return entropy(low, high, blanks, p_table, pixels, METHOD)


@triton.jit
def _field(geometry, image: tl.constexpr, field: tl.constexpr):
    return plain(geometry[image * FIELDS + field])


@triton.jit(do_not_specialize=["patch_size"])
def patch_entropy_kernel(
    geometry,  # tuple of IMAGES * FIELDS numbers, see _Image.geometry
    p_table,  # int64 [patch_size**2 + 1]
    p_entropy,  # f32 [cells of all images]
    patch_size,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,  # 1 or 3
    ACCESS: tl.constexpr,  # ANY_STRIDES, PLANES or TRIPLES
    STEPS: tl.constexpr,  # 1: a cell is one step; 2: one or more
    USED: tl.constexpr,  # blocks of a step
    CELLS: tl.constexpr,
    QUADS: tl.constexpr,
    METHOD: tl.constexpr,
):
    """Writes ``entropy[first + c]`` for the cells ``c`` of one program."""
    pid = tl.program_id(0)
    address = _field(geometry, 0, 0)
    channel_stride = _field(geometry, 0, 1)
    row_stride = _field(geometry, 0, 2)
    column_stride = _field(geometry, 0, 3)
    across = _field(geometry, 0, 4)
    cells = _field(geometry, 0, 5)
    first_cell = _field(geometry, 0, 6)
    first_program = _field(geometry, 0, 7)
    for i in tl.static_range(1, IMAGES):
        mine = pid >= _field(geometry, i, 7)
        address = tl.where(mine, _field(geometry, i, 0), address)
        channel_stride = tl.where(mine, _field(geometry, i, 1), channel_stride)
        row_stride = tl.where(mine, _field(geometry, i, 2), row_stride)
        column_stride = tl.where(mine, _field(geometry, i, 3), column_stride)
        across = tl.where(mine, _field(geometry, i, 4), across)
        cells = tl.where(mine, _field(geometry, i, 5), cells)
        first_cell = tl.where(mine, _field(geometry, i, 6), first_cell)
        first_program = tl.where(mine, _field(geometry, i, 7), first_program)
    across = across.to(tl.int32)
    cells = cells.to(tl.int32)
    first_program = first_program.to(tl.int32)
    strides = (channel_stride, row_stride, column_stride)
    tables = lane_tables(QUADS, METHOD)
    begin = (pid - first_program) * CELLS
    # From cell to cell by addition: a division costs as much as a dozen pixels.
    column = begin % across
    p_row = address.to(tl.pointer_type(tl.uint8))
    p_row += (begin // across).to(tl.int64) * patch_size * row_stride
    for cell in range(begin, tl.minimum(begin + CELLS, cells)):
        p_cell = p_row + column.to(tl.int64) * patch_size * column_stride
        result = _cell_entropy(
            p_cell, strides, p_table, tables, patch_size,
            CHANNELS, ACCESS, STEPS, USED, QUADS, METHOD,
        )  # fmt: skip
        tl.store(p_entropy + first_cell + cell, result)
        column += 1
        ends = column == across
        p_row += tl.where(ends, row_stride * patch_size, 0)
        column = tl.where(ends, 0, column)


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image of a batch: ``[C, H, W]`` or ``[H, W]``."""

    data: Tensor
    patch_size: int
    first_cell: int

    @property
    def channels(self) -> int:
        return 1 if self.data.dim() == 2 else self.data.shape[0]

    @property
    def across(self) -> int:
        return self.data.shape[-1] // self.patch_size

    @property
    def cells(self) -> int:
        return self.data.shape[-2] // self.patch_size * self.across

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of channels, rows and columns, in bytes."""
        channel = self.data.stride(0) if self.channels == 3 else 0
        return channel, self.data.stride(-2), self.data.stride(-1)

    @property
    def access(self) -> int:
        """How quads can be read; words want alignment, and 32-bit offsets inside of a cell."""
        channel, row, column = self.strides
        words = all(n % QUAD.value == 0 for n in (self.data.data_ptr(), row, self.patch_size))
        words = words and self.patch_size * (row + 3 * QUAD.value) <= INT32_MAX
        if words and column == 1 and channel % QUAD.value == 0:
            return PLANES.value  # type: ignore[no-any-return]
        if words and (channel, column) == (1, 3) and not _launch.INTERPRETED:
            return TRIPLES.value  # type: ignore[no-any-return]
        return ANY_STRIDES.value  # type: ignore[no-any-return]

    def geometry(self, first_program: int) -> tuple[int, ...]:
        counts = (self.across, self.cells, self.first_cell, first_program)
        return odd((self.data.data_ptr(), *self.strides, *counts))


def patch_entropy(images: Sequence[Tensor], patch_size: int, table: Tensor) -> Tensor:
    """See `erase_kernels.patch_entropy`; ``table`` as `erase_kernels._numerics.entropy_table`."""
    batch: dict[tuple[int, int], list[_Image]] = {}
    cells = 0
    for data in images:
        image = _Image(data, patch_size, cells)
        cells += image.cells
        if image.cells > 0:
            batch.setdefault((image.channels, image.access), []).append(image)
    result = table.new_empty(cells, dtype=torch.float32)
    with _launch.on(result.device):
        for alike in batch.values():
            for start in range(0, len(alike), BUCKETS[-1]):
                _launch_images(alike[start : start + BUCKETS[-1]], table, result)
    return result


def _launch_images(images: list[_Image], table: Tensor, result: Tensor) -> None:
    """One launch for images of as many channels and the same access."""
    first = images[0]
    case = shape_class(result.numel())
    config = _launch.config(KERNEL, case, _launch.architecture(result.device))
    settings = _settings(config, first.channels, first.access, first.patch_size)
    geometry: list[int] = []
    programs = 0
    for image in images:
        geometry += image.geometry(programs)
        programs += _launch.cdiv(image.cells, settings["CELLS"])
    bucket = next(size for size in BUCKETS if size >= len(images))
    blanks = bucket - len(images)
    # No program number reaches the first program of a missing image.
    geometry += odd([0] * (FIELDS.value - 1) + [programs]) * blanks
    patch_entropy_kernel[(programs,)](
        geometry=tuple(geometry),
        p_table=table,
        p_entropy=result,
        patch_size=first.patch_size,
        IMAGES=bucket,
        **settings,
    )


def _settings(
    config: _launch.Config, channels: int, access: int, patch_size: int
) -> dict[str, Any]:
    """Constexprs and options of a launch."""
    quads = patch_size * _launch.cdiv(patch_size, QUAD.value)
    return {**count_settings(config, quads), "CHANNELS": channels, "ACCESS": access}


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every configuration, with one image and with several, for the layouts there are."""
    variants = [
        ("rgb planes 28", 3, PLANES.value, 28, 1),
        ("rgb planes 32", 3, PLANES.value, 32, 4),
    ]
    variants += [
        ("rgb triples 28", 3, TRIPLES.value, 28, 1),
        ("rgb 14", 3, ANY_STRIDES.value, 14, 1),
    ]
    variants += [("gray planes 28", 1, PLANES.value, 28, 1), ("gray 64", 1, PLANES.value, 64, 1)]
    items = []
    for case in _launch.shape_classes(KERNEL):
        config = _launch.config(KERNEL, case, architecture)
        for name, channels, access, patch_size, images in variants:
            settings = _settings(config, channels, access, patch_size)
            options = {key: settings.pop(key) for key in (*config.options, "enable_fp_fusion")}
            constexprs = {**settings, "IMAGES": images}
            signature = {
                "geometry": ("i64", *["i32"] * (FIELDS.value - 1)) * images,
                "p_table": "*i64",
                "p_entropy": "*fp32",
                "patch_size": "i32",
                **dict.fromkeys(constexprs, "constexpr"),
            }
            items.append(
                _launch.Compilation(
                    name=f"patch_entropy {case}, {name}, {images} images",
                    kernel=patch_entropy_kernel,
                    signature=signature,
                    constexprs=constexprs,
                    options=options,
                    luma=True,
                )
            )
    return items
