"""Edge strengths by numpy, cell by cell as they are defined."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np

from tests.entropy_oracle import gray_of


def edges_of(frames: list[np.ndarray]) -> np.float32:
    """``sum d^2 / sum |d|`` over neighbours in each of the gray frames of a cell; 0 where flat."""
    squares = total = 0
    for frame in frames:
        rows = [line.tolist() for line in frame]
        columns = [line.tolist() for line in frame.T]
        for line in rows + columns:
            for left, right in pairwise(line):
                squares += (right - left) ** 2
                total += abs(right - left)
    return np.float32(squares / total if total else 0.0)  # integers, divided in float64


def slice_edges(frames: np.ndarray, cell: int) -> np.ndarray:
    """f32 [n], row-major, of uint8 frames [F, C, H, W] that share cells."""
    return _once(frames.tobytes(), frames.shape, cell).copy()


@functools.lru_cache(maxsize=256)
def _once(levels: bytes, shape: tuple[int, ...], cell: int) -> np.ndarray:
    frames = np.frombuffer(levels, np.uint8).reshape(shape)
    grays = [gray_of(frame) for frame in frames]
    height, width = grays[0].shape
    return np.array(
        [
            edges_of([gray[top : top + cell, left : left + cell] for gray in grays])
            for top in range(0, height, cell)
            for left in range(0, width, cell)
        ],
        np.float32,
    )


def cell_edges(image: np.ndarray, cell: int) -> np.ndarray:
    """f32 [n], row-major, of a uint8 image ``[3, H, W]``, ``[1, H, W]`` or ``[H, W]``."""
    return slice_edges((image if image.ndim == 3 else image[None])[None], cell)
