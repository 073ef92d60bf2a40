"""What stage 1 ranks the cells of an image by, and cells that it keeps for their places."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from erase.methods._parts import best_cells
from erase.methods._protocol import Draft, ImageSignals
from erase.transfer import upload
from erase_kernels import SegmentedTopK

Stage1Score = Literal["entropy", "deviation", "edges"]
STAGE1_SCORES = ("entropy", "deviation", "edges")

GOLDEN_RATIO_CONJUGATE = (math.sqrt(5.0) - 1.0) / 2.0
"""Its multiples modulo 1 lie evenly in [0, 1) however many are taken, so those that fall below a
bound are evenly spaced (Knuth, The Art of Computer Programming, volume 3, section 6.4)."""


def scores_of(score: Stage1Score, images: ImageSignals, draft: Draft) -> Tensor | None:
    """f32 [n], higher is kept; None for "entropy": the entropies themselves.

    ``draft``: of the same images; "deviation" is from its medians.

    Raises:
        ValueError: "edges", and ``images`` came without.
    """
    if score == "entropy":
        return None
    if score == "edges":
        if images.edges is None:
            raise ValueError("images: expected edges, which stage1_score='edges' needs, got None")
        return images.edges
    lengths = images.offsets.diff()
    typical = draft.median.repeat_interleave(lengths, output_size=len(images.entropy))
    return (images.entropy - typical).abs()


def spread_and_best(
    images: ImageSignals, score: Tensor, counts: Sequence[int], spread: float
) -> SegmentedTopK:
    """``counts`` cells of each image: ``int(count * spread)`` by `spread_cells`, then the best."""
    reserved: list[int] = []
    first = 0
    for size, count in zip(images.sizes, counts, strict=True):
        share = int(count * spread)
        if share:
            reserved += [first + cell for cell in spread_cells(size)[:share]]
        first += size
    if reserved:
        # Above every score: the reserved cells win, and the others compete for what is left.
        places = upload(reserved, torch.int64, score.device)
        score = score.index_fill(0, places, math.inf)
    return best_cells(images, score, counts)


@functools.lru_cache(maxsize=64)
def spread_cells(size: int) -> tuple[int, ...]:
    """Cells ``j`` of an image in ascending order of ``frac((j + 1) * GOLDEN_RATIO_CONJUGATE)``.

    In float64; ties, which do not occur, go to the lowest index. The first of them lie evenly among
    all cells in row-major order, however many are taken. That is along the one axis of cell
    numbers, not in the plane: where the image is about a Fibonacci number of cells wide (8, 13, 21,
    34, ...), cells of the same few columns come first.
    """
    return tuple(sorted(range(size), key=lambda cell: (cell + 1) * GOLDEN_RATIO_CONJUGATE % 1.0))
