"""What ERASE must choose before the language model runs, worked out with numpy and plain Python.

Part of the integration's oracle (``tests/oracle.py``); nothing here comes from the packages under
test. Entropies are integer histograms and an exact table made with decimals; levels, counts and
layers are plain Python.
"""

from __future__ import annotations

import dataclasses
import decimal
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.edges_oracle import cell_edges
from tests.prompts import CELL, split_images

_SCALE = 2**40


@dataclasses.dataclass
class Picture:
    """What is true of one image (or video): f32 entropies of its cells, flags of its placeholders.

    A placeholder that is no candidate (a newline, a class token) has no cell and is always kept.
    """

    entropy: np.ndarray
    candidates: list[bool]
    # f32, of its cells; None: not worked out
    edges: np.ndarray | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass
class ImageChoice:
    """Stage 1 of one image."""

    entropy: np.ndarray  # f32 [n], nats
    median: float
    level: int
    kept: list[int]  # cells local to the image, ascending
    scores: np.ndarray | None = None  # f32 [n] that chose them, where not the entropies
    by_edges: bool = False


@dataclasses.dataclass
class RowChoice:
    """Both stages of one batch row. Positions are columns of the unpruned sequence."""

    images: list[ImageChoice]
    visual: list[int]
    text: list[int]  # valid non-visual columns of this prefill: the stage-2 queries of "exact"
    wanted_layer: int | None
    budget: int | None
    stage1: list[int]
    layer: int | None = None
    candidates: list[int] | None = None
    scores: np.ndarray | None = None  # float64, aligned with candidates
    kept: list[int] | None = None
    margin: float | None = None  # (last kept - first dropped) / last kept; None: ties at 0


@dataclasses.dataclass
class Turn:
    """One prefill that brought images."""

    rows: list[RowChoice]
    past: int
    length: int
    valid_after: list[int] | None = None  # cache rows of each batch row right after the prefill


@functools.cache
def _term_table(pixels: int) -> np.ndarray:
    """T[c] = round_half_even(2^40 * c ln c / N) for c = 0..N, as Python integers would give it."""
    with decimal.localcontext() as context:
        context.prec = 60
        context.rounding = decimal.ROUND_HALF_EVEN
        terms = [0]
        for count in range(1, pixels + 1):
            value = decimal.Decimal(count) * decimal.Decimal(count).ln() * _SCALE / pixels
            terms.append(int(value.to_integral_value()))
    return np.array(terms, np.int64)


def cell_entropies(image: np.ndarray, cell: int = CELL) -> np.ndarray:
    """Entropy of every cell of a uint8 image [3, H, W], row-major, f32 [n] in nats."""
    return slice_entropies(image[None], cell)


def slice_entropies(frames: np.ndarray, cell: int) -> np.ndarray:
    """Entropy of every cell of uint8 frames [F, 3, H, W], all its frames in one histogram."""
    red, green, blue = (frames[:, channel].astype(np.float32) for channel in range(3))
    luma = (
        np.float32(0.299) * red + np.float32(0.587) * green
    )  # numpy rounds every step, no fused multiply-add
    luma = np.clip(np.floor(luma + np.float32(0.114) * blue), 0, 255).astype(np.int64)
    count, height, width = luma.shape
    blocks = luma.reshape(count, height // cell, cell, width // cell, cell).transpose(1, 3, 0, 2, 4)
    table = _term_table(count * cell * cell)
    totals = [
        int(table[-1]) - int(table[np.bincount(block.ravel(), minlength=256)].sum())
        for block in blocks.reshape(-1, count * cell * cell)
    ]
    return np.array([np.float32(total) * np.float32(1.0 / _SCALE) for total in totals], np.float32)


def recovered_images(
    pixel_values: torch.Tensor, grids: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> list[np.ndarray]:
    """uint8 images [3, H, W] out of processor tensors of any dtype, by unfused fp32 arithmetic."""
    scale, shift = (np.array(v, np.float32)[:, None, None] for v in (std, mean))
    out = []
    for image in split_images(pixel_values, grids):
        level = (image * scale + shift) * np.float32(255)
        out.append(np.clip(np.floor(level + np.float32(0.5)), 0, 255).astype(np.uint8))
    return out


def top_indices(score: np.ndarray, count: int) -> list[int]:
    """The ``count`` largest, ties to the lowest index, ascending."""
    order = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    return sorted(order[:count])


def picture_of(image: np.ndarray | Picture, cell: int = CELL) -> Picture:
    """A resized uint8 image [3, H, W] is all cells, one per token."""
    if isinstance(image, Picture):
        return image
    entropy = cell_entropies(image, cell)
    return Picture(entropy, [True] * len(entropy), edges=cell_edges(image, cell))


def visible_part(picture: Picture, visible: list[bool]) -> Picture:
    """The picture without the cells of placeholders that the attention mask hides."""
    if all(visible):
        return picture
    candidates = [a and b for a, b in zip(picture.candidates, visible, strict=True)]
    cells = [b for a, b in zip(picture.candidates, visible, strict=True) if a]
    edges = None if picture.edges is None else picture.edges[cells]
    return Picture(picture.entropy[cells], candidates, edges=edges)


def pictures_on(left: list[np.ndarray | Picture], visible: list[bool]) -> list[Picture]:
    """Takes from ``left`` the pictures whose placeholders these are, as far as they are visible."""
    shown: list[Picture] = []
    at = 0
    while at < len(visible):
        whole = picture_of(left.pop(0))
        shown.append(visible_part(whole, visible[at : at + len(whole.candidates)]))
        at += len(whole.candidates)
    return shown


def choose_image(config: Any, image: np.ndarray | Picture, cell: int = CELL) -> ImageChoice:
    """Stage 1 of one image: lower median, first threshold it exceeds, the counted top scores."""
    picture = picture_of(image, cell)
    entropy = picture.entropy
    n = len(entropy)
    median = float(np.sort(entropy)[(n - 1) // 2]) if n else 0.0
    level = len(config.entropy_thresholds)
    for i, threshold in enumerate(config.entropy_thresholds):
        if median > float(np.float32(threshold)):
            level = i
            break
    ratio = config.stage1_keep_ratios[level]
    if config.keep_ratio is not None:
        ratio = max(ratio, config.keep_ratio)
    count = int(n * ratio) if config.stage1 else n
    rule = config.stage1_score if config.stage1 else "entropy"
    scores = None
    if rule != "entropy":
        scores = picture.edges if rule == "edges" else np.abs(entropy - np.float32(median))
    kept = best_cells(entropy if scores is None else scores, count, config.stage1_spread)
    return ImageChoice(entropy, median, level, kept, scores, rule == "edges")


def best_cells(score: np.ndarray, count: int, spread: float) -> list[int]:
    """``int(count * spread)`` cells for their places, then the best of the others, ascending."""
    golden = (math.sqrt(5) - 1) / 2
    places = sorted(range(len(score)), key=lambda j: (math.modf((j + 1) * golden)[0], j))
    reserved = places[: int(count * spread)]
    others = [j for j in range(len(score)) if j not in reserved]
    best = top_indices(score[others], count - len(reserved))
    return sorted([*reserved, *(others[i] for i in best)])


def choose_layer(config: Any, images: list[ImageChoice]) -> int:
    """Late where any image of the row is complex."""
    levels = len(config.entropy_thresholds) + 1
    complex_levels = config.complex_levels
    if complex_levels is None:
        complex_levels = (levels - 1 + 2) // 2
    is_complex = any(image.level < complex_levels for image in images)
    return config.late_layer if is_complex else config.early_layer


def choose_row(
    config: Any, visual: list[int], text: list[int], images: list[ImageChoice]
) -> RowChoice:
    """Stage 1 of a row, and whether stage 2 has anything left to do."""
    starts = np.cumsum([0, *(len(image.entropy) for image in images)])
    assert starts[-1] == len(visual), "images do not cover the visual tokens of the row"
    kept = [visual[s + j] for s, image in zip(starts, images, strict=False) for j in image.kept]
    stage1 = sorted(kept)  # videos come after the images, but may stand before them
    row = RowChoice(images, visual, text, None, None, stage1, kept=stage1)
    if images and config.stage2 and config.keep_ratio is not None:
        budget = int(len(visual) * config.keep_ratio)
        if len(stage1) > budget:
            row.wanted_layer = choose_layer(config, images)
            row.budget, row.kept = budget, None
    return row
