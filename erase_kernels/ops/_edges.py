"""Edge strength of cells, composed of torch operators: the same bits on every device.

All sums are of integers, and the one quotient is in float64, which every device rounds alike. Cells
are worked off in chunks of at most `CHUNK_PIXELS` pixels, or of one cell where that has more, and
a chunk takes at most 128 bytes of memory for each of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from erase_kernels import _schemas
from erase_kernels._numerics import LUMA_BLUE, LUMA_GREEN, LUMA_RED
from erase_kernels._status import Status, status_word
from erase_kernels.pixel_layout import MAX_LEVEL, PixelLayout, not_integers_message

CHUNK_PIXELS = 2**20  # few enough to bound memory, enough that a GPU is busy with one chunk


def _blocks(strided: Tensor) -> Iterator[Tensor]:
    """Parts of ``[i, j, k, ...]`` of at most `CHUNK_PIXELS` pixels, cells in row-major order."""
    cells = max(1, CHUNK_PIXELS // math.prod(strided.shape[4:]))
    blocks = [strided]
    for dim in range(3):
        step = max(1, cells // max(1, math.prod(strided.shape[dim + 1 : 3])))
        blocks = [part for block in blocks for part in block.split(step, dim)]
    return iter(blocks)


def _gray(planes: Sequence[Tensor]) -> Tensor:
    """Gray levels out of planes of uint8 levels, as the luma of `patch_entropy`: int32."""
    if len(planes) == 1:
        return planes[0].to(torch.int32)
    red, green, blue = (plane.to(torch.float32) for plane in planes)
    return torch.floor((red * LUMA_RED + green * LUMA_GREEN) + blue * LUMA_BLUE).to(torch.int32)


def _scores(gray: Tensor, segment_columns: int, frames: int) -> Tensor:
    """int32 ``[i, j, k, s, r, c]`` -> f32 ``[i * j * k]``."""
    segments, rows, columns = gray.shape[3:]
    grid = (segments // segment_columns, segment_columns)
    split = gray.reshape(math.prod(gray.shape[:3]), *grid, frames, rows // frames, columns)
    pictures = split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [n, frames, h, w]
    squares = total = torch.zeros(len(pictures), dtype=torch.int64, device=gray.device)
    for dim in (-1, -2):
        difference = pictures.diff(dim=dim)
        total = total + difference.abs().sum((1, 2, 3), dtype=torch.int64)
        squares = squares + difference.square_().sum((1, 2, 3), dtype=torch.int64)
    # A flat cell has 0 / 1.
    return (squares.to(torch.float64) / total.clamp(min=1).to(torch.float64)).to(torch.float32)


def _patch_edges(images: Sequence[Tensor], patch_size: int) -> Tensor:
    scores = []
    for image in images:
        planes = image if image.dim() == 3 else image.unsqueeze(0)
        height, width = (size // patch_size for size in planes.shape[1:])
        cells = planes.unflatten(1, (height, patch_size)).unflatten(3, (width, patch_size))
        strided = cells.permute(1, 3, 0, 2, 4)[None, :, :, :, None]  # [1, j, k, C, 1, p, p]
        scores += [_scores(_gray(block.unbind(3)), 1, 1) for block in _blocks(strided)]
    return torch.cat(scores)


def _patch_edges_from_pixels(
    pixel_values: Tensor,
    cell_sizes: Sequence[int],
    cell_strides: Sequence[int],
    pixel_sizes: Sequence[int],
    pixel_strides: Sequence[int],
    channel_stride: int,
    segment_columns: int,
    frames: int,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
    tolerance: float,
) -> Tensor:
    layout = PixelLayout(
        shape=tuple(pixel_values.shape[1:]),
        cell_sizes=(cell_sizes[0], cell_sizes[1]),
        cell_strides=(cell_strides[0], cell_strides[1], cell_strides[2]),
        pixel_sizes=(pixel_sizes[0], pixel_sizes[1], pixel_sizes[2]),
        pixel_strides=(pixel_strides[0], pixel_strides[1], pixel_strides[2]),
        channels=len(mean),
        channel_stride=channel_stride,
        mean=tuple(mean),
        std=tuple(std),
        scale=scale,
        segment_columns=segment_columns,
        frames=frames,
    )
    layout.cells(pixel_values)
    wrong = torch.zeros((), dtype=torch.bool, device=pixel_values.device)
    scores = []
    for block in _blocks(layout.strided(pixel_values)):
        planes = []
        for channel, values in enumerate(block.unbind(3)):
            level, far = _level(values, layout, channel, tolerance)
            planes.append(level)
            wrong = wrong | far
        scores.append(_scores(_gray(planes), segment_columns, frames))
    _report(wrong, tolerance)
    return torch.cat(scores)


def _level(
    values: Tensor, layout: PixelLayout, channel: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Levels of a channel as `PixelLayout.recover` has them, and whether any value was none.

    With numbers instead of tensors of statistics, whose copy to a GPU would wait.
    """
    exact = values.to(torch.float32, copy=True)
    exact.mul_(layout.std[channel]).add_(layout.mean[channel]).mul_(layout.scale)
    level = (exact + 0.5).floor_().clamp_(0.0, MAX_LEVEL)
    far = ~(exact.sub_(level).abs_() <= tolerance).all()  # also of NaN
    return level.to(torch.uint8), far


def _report(wrong: Tensor, tolerance: float) -> None:
    """Raises on the CPU; elsewhere, where that would wait, sets a bit of the status word."""
    if wrong.device.type != "cpu":
        status_word(wrong.device).bitwise_or_(wrong.to(torch.int32) * int(Status.PIXELS))
    elif bool(wrong):
        raise ValueError(not_integers_message(tolerance))


_schemas.implement_composite("patch_edges", _patch_edges)
_schemas.implement_composite("patch_edges_from_pixels", _patch_edges_from_pixels)
