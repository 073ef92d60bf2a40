"""What the reading model is trained on, in which order: batches made of nothing but their number.

Glyphs first (the encoder alone, with a throw-away classifier), then questions about tiny images,
then about images of 64 tokens, then of up to 256. A language model that is trained before the
glyphs can be told apart learns next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.layout import conversation
from bench.accuracy.samples import CELL, DIGITS, KEYS, PHOTOS, Sample, draw

GLYPHS = KEYS + DIGITS
"""What the throw-away classifier looks for in each cell."""


@dataclass(frozen=True)
class Kind:
    """One kind of batch.

    Attributes:
        grid: (rows, columns) of cells of the drawn images; ``batch``: how many.
        labels: fewest and most labels; one number per batch, so that all prompts are equally long.
        turns: most questions about one image; 0: none, the encoder is trained alone.
        shrink: sides in cells to which the square image is scaled down afterwards, one per batch.
    """

    grid: tuple[int, int]
    batch: int
    labels: tuple[int, int]
    turns: int
    shrink: tuple[int, int] | None = None


@dataclass(frozen=True)
class Phase:
    """``share`` of all steps, drawing each batch's kind with the given weights.

    ``backgrounds``: those in use. ``glyph_weight``: of the classifier's loss beside the answers'.
    """

    share: float
    kinds: tuple[tuple[float, Kind], ...]
    backgrounds: tuple[str, ...]
    glyph_weight: float


_TINY = Kind((4, 4), 64, (1, 3), 2)
_SMALL = Kind((8, 8), 32, (3, 6), 4)
_WIDE = (Kind((6, 11), 32, (3, 6), 4), Kind((11, 6), 32, (3, 6), 4))
_SHRUNK = Kind((8, 8), 40, (3, 6), 4, shrink=(5, 7))
_LARGE = Kind((16, 16), 8, (4, 10), 7)
_LARGE_SHRUNK = Kind((16, 16), 16, (4, 10), 7, shrink=(8, 14))


def _encoder_only(kind: Kind) -> Kind:
    return Kind(kind.grid, kind.batch, kind.labels, 0, kind.shrink)


PHASES = (
    Phase(0.05, ((1.0, _encoder_only(Kind((4, 4), 64, (2, 3), 0))),), ("flat",), 1.0),
    Phase(0.05, ((1.0, _encoder_only(Kind((8, 8), 32, (5, 9), 0))),), BACKGROUNDS, 1.0),
    Phase(0.06, ((1.0, _TINY),), BACKGROUNDS, 0.3),
    Phase(0.06, ((0.5, _TINY), (0.5, _SMALL)), BACKGROUNDS, 0.3),
    Phase(
        0.40,
        ((0.04, _TINY), (0.78, _SMALL), (0.04, _WIDE[0]), (0.04, _WIDE[1]), (0.10, _SHRUNK)),
        BACKGROUNDS,
        0.2,
    ),
    Phase(
        0.38,
        (
            (0.40, _SMALL),
            (0.02, _WIDE[0]),
            (0.02, _WIDE[1]),
            (0.06, _SHRUNK),
            (0.38, _LARGE),
            (0.12, _LARGE_SHRUNK),
        ),
        BACKGROUNDS,
        0.1,
    ),
)


@dataclass(frozen=True)
class Batch:
    """Tensors of one step.

    Attributes:
        images: u8 [B, H, W, 3].
        glyphs: f32 [B, n, 30], 1 where a glyph's centre lies in the cell.
        ids: i64 [B, S]; ``predicting``: i64 [A], positions that predict the answers' tokens.
            Both empty where the encoder is trained alone.
        grid: of the images, after any scaling.
        glyph_weight: of the classifier's loss.
    """

    images: Tensor
    glyphs: Tensor
    ids: Tensor
    predicting: Tensor
    grid: tuple[int, int]
    glyph_weight: float


def phase_at(step: int, steps: int) -> Phase:
    """The phase that ``step`` of ``steps`` belongs to."""
    reached = 0.0
    for phase in PHASES:
        reached += phase.share
        if step < round(reached * steps):
            return phase
    return PHASES[-1]


def joint_start(steps: int) -> int:
    """First step that trains the language model."""
    return round(sum(p.share for p in PHASES if p.kinds[0][1].turns == 0) * steps)


class Batches(Dataset[Batch]):
    """Batch ``step`` of a training run; the same for the same seed, steps and step."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self.steps = seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        phase = phase_at(step, self.steps)
        weights = np.array([weight for weight, _ in phase.kinds])
        kind = phase.kinds[int(rng.choice(len(weights), p=weights / weights.sum()))][1]
        return make_batch(rng, kind, phase.backgrounds, phase.glyph_weight)


def make_batch(
    rng: np.random.Generator, kind: Kind, backgrounds: tuple[str, ...], glyph_weight: float
) -> Batch:
    """Draws the images of a batch and asks about as many labels as every image has."""
    count = int(rng.integers(kind.labels[0], kind.labels[1] + 1))
    samples = [
        draw(rng, kind.grid, backgrounds[i % len(backgrounds)], count, PHOTOS["train"])
        for i in range(kind.batch)
    ]
    grid = kind.grid
    if kind.shrink is not None:
        side = int(rng.integers(kind.shrink[0], kind.shrink[1] + 1))
        grid = (side, side)
    images = np.stack([_scaled(sample.image, grid) for sample in samples])
    glyphs = np.stack([_glyph_map(sample, grid) for sample in samples])
    turns = min(kind.turns, *(len(sample.labels) for sample in samples))
    ids: list[list[int]] = []
    predicting: list[int] = []
    for sample in samples if turns else ():
        asked = rng.permutation(len(sample.labels))[:turns].tolist()
        row, predicting = conversation(sample, asked, grid[0] * grid[1])
        ids.append(row)
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(glyphs),
        torch.tensor(ids, dtype=torch.long),
        torch.tensor(predicting, dtype=torch.long),
        grid,
        glyph_weight,
    )


def _scaled(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    size = (grid[1] * CELL, grid[0] * CELL)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _glyph_map(sample: Sample, grid: tuple[int, int]) -> np.ndarray:
    height, width = sample.image.shape[:2]
    found = np.zeros((grid[0] * grid[1], len(GLYPHS)), dtype=np.float32)
    for label in sample.labels:
        for glyph, (x, y) in zip(label.key + label.value, label.centres, strict=True):
            cell = int(y * grid[0] / height) * grid[1] + int(x * grid[1] / width)
            found[cell, GLYPHS.index(glyph)] = 1.0
    return found
