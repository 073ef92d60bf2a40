"""Tiles, cells and any-resolution packing of uint8 images in numpy, and resizing by itself.

Only the resize is the stock processors' (it has to be the same backend's); cutting, padding and
packing are done here again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import CLIPImageProcessor

from tests.oracle_choices import Picture, cell_entropies

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [3, height, width], bicubic."""
    out = CLIPImageProcessor(
        size={"height": height, "width": width},
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
    )(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(out, np.rint(out))
    return out.astype(np.uint8)


def cut(canvas: np.ndarray, side: int) -> list[np.ndarray]:
    """Square tiles of [3, H, W], row-major."""
    _, height, width = canvas.shape
    return [
        canvas[:, top : top + side, left : left + side]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def cell_map(image: np.ndarray, cell: int, measure: Any = cell_entropies) -> np.ndarray:
    """Entropies, or edges, [rows, columns] of the whole cells of [3, H, W]."""
    rows, columns = image.shape[1] // cell, image.shape[2] // cell
    whole = np.ascontiguousarray(image[:, : rows * cell, : columns * cell])
    return measure(whole, cell).reshape(rows, columns)


def mosaic(
    tiles: list[np.ndarray], across: int, cell: int, measure: Any = cell_entropies
) -> np.ndarray:
    """Entropies, or edges, of the cells of a grid of tiles, as one map."""
    maps = [cell_map(tile, cell, measure) for tile in tiles]
    rows = [np.concatenate(maps[i : i + across], axis=1) for i in range(0, len(maps), across)]
    return np.concatenate(rows, axis=0)


def best_canvas(height: int, width: int, canvases: list[list[int]]) -> tuple[int, int]:
    """The canvas that shows most of an image's pixels, then wastes least."""

    def merit(canvas: list[int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - canvas[0] * canvas[1]

    return tuple(max(canvases, key=merit))


def letterboxed(
    image: np.ndarray, canvas: tuple[int, int], measure: Any = cell_entropies
) -> np.ndarray:
    """[3, *canvas]: the image as large as fits, in the middle of black; for edges of its border."""
    height, width = image.shape[:2]
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        size = (min(math.ceil(height * across), canvas[0]), canvas[1])
    else:
        size = (canvas[0], min(math.ceil(width * down), canvas[1]))
    top, left = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
    below, right = canvas[0] - top - size[0], canvas[1] - left - size[1]
    bars = "constant" if measure is cell_entropies else "edge"
    return np.pad(resized(image, *size), ((0, 0), (top, below), (left, right)), mode=bars)


def without_bars(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows or columns of a map that show an image of this size."""
    rows, columns = cells.shape
    if width / height > columns / rows:
        bar = (rows - int(round(height * (columns / width), 7))) // 2
        return cells[bar : rows - bar]
    bar = (columns - int(round(width * (rows / height), 7))) // 2
    return cells[:, bar : columns - bar]


def shrunk(cells: np.ndarray, most: float) -> np.ndarray:
    """Bilinear blend of a map that has clearly more than ``most`` cells.

    In float64, rounded to multiples of 2**-30 and then to fp32.
    """
    ratio = math.sqrt(cells.size / most)
    if ratio <= 1.1:
        return cells
    weights = [_weights(n, int(n // ratio)) for n in cells.shape]
    blended = weights[0] @ cells.astype(np.float64) @ weights[1].T
    return (np.rint(blended * 2**30) / 2**30).astype(np.float32)


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old]: centres of the new cells between the centres of the old ones."""
    out = np.zeros((new, old))
    for i in range(new):
        where = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(where)
        high = min(low + 1, old - 1)
        out[i, low] += 1 - (where - low)
        out[i, high] += where - low
    return out


def any_resolution(base: np.ndarray, grid: np.ndarray | None) -> Picture:
    """Base tile, then rows of the grid with a newline after each; one newline without a grid."""
    flags = [True] * base.size
    if grid is None:
        return Picture(base.ravel(), [*flags, False])
    flags += ([True] * grid.shape[1] + [False]) * grid.shape[0]
    return Picture(np.concatenate([base.ravel(), grid.ravel()]), flags)
