"""Letterbox bars of any-resolution images, which have an edge that no picture has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._patches import function_of_model_file


def with_bars_filled(
    base: Any, tiles: Tensor, counts: Sequence[int], sizes: Sequence[Sequence[int]]
) -> Tensor:
    """The tiles of all images, where black bars repeat the nearest pixel of their image.

    The processor enlarges an image until it touches two sides of its grid of tiles, and centres it.
    Base tiles show the whole image without bars, and an image of one tile has only that.

    Args:
        base: the vision-language model.
        tiles: ``[sum(counts), C, H, W]``, of each image the base tile, then the grid row-major.
        counts: tiles of each image.
        sizes: height and width of each image before it was resized.

    Returns:
        A copy; ``tiles`` stay as they are.
    """
    shape_of = function_of_model_file(base, "get_anyres_image_grid_shape")
    if shape_of is None:
        raise RuntimeError("stage 1: the model file has no function for the grid of an image")
    config, height, width = base.config, *tiles.shape[-2:]
    filled = []
    for part, count, size in zip(tiles.split(list(counts)), counts, sizes, strict=True):
        filled.append(part[:1])
        if count == 1:
            continue
        rows, columns = shape_of(size, config.image_grid_pinpoints, config.vision_config.image_size)
        canvas = (rows * height, columns * width)
        down, across = (
            torch.arange(length, device=tiles.device).clamp(first, last)
            for length, (first, last) in zip(canvas, _shown(size, canvas), strict=True)
        )
        grid = part[1:].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
        picture = grid.reshape(-1, *canvas).index_select(1, down).index_select(2, across)
        grid = picture.unflatten(2, (columns, width)).unflatten(1, (rows, height))
        filled.append(grid.permute(1, 3, 0, 2, 4).flatten(0, 1))
    return torch.cat(filled)


def _shown(size: Sequence[int], canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """First and last row, first and last column of ``canvas`` that show an image of ``size``.

    As the stock processors resize and centre it: the longer side fills, the other is rounded up.
    """
    scales = [room / length for room, length in zip(canvas, size, strict=True)]
    shown = []
    for room, length, scale in zip(canvas, size, scales, strict=True):
        held = room if scale == min(scales) else min(math.ceil(length * min(scales)), room)
        first = (room - held) // 2
        shown.append((first, first + held - 1))
    return shown
