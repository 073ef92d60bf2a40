"""The task: images with a few labels, and the question what stands beside one of the letters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from bench.accuracy.backgrounds import (
    BACKGROUNDS,
    CALIBRATION_PHOTOS,
    TEST_PHOTOS,
    TRAINING_PHOTOS,
    VALIDATION_PHOTOS,
    draw_background,
    font,
)

CELL = 28
"""Pixels: side of what one visual token sees (2 x 2 patches of 14)."""
KEYS = "ACDEFGHJKLMNPRTUVWXY"
"""Letters that are not taken for digits or for each other."""
DIGITS = "0123456789"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
SIZES = (20, 27)
"""Font sizes of labels in pixels, both included."""
GAP = 4
"""Pixels between two labels, and between a label and the edge."""
PAD = (3, 7)
"""Pixels of flat plate around a label where it has one."""
CONTRAST = 90.0
"""Least difference in brightness between a label and the mean behind it."""
CLUTTER = 4
"""Most shapes drawn below the labels."""
ATTEMPTS = 200
"""Positions tried for one label before it is left out."""
LUMA = np.array([0.299, 0.587, 0.114])

PHOTOS = {
    "train": TRAINING_PHOTOS,
    "validation": VALIDATION_PHOTOS,
    "calibration": CALIBRATION_PHOTOS,
    "test": TEST_PHOTOS,
}
"""validation: for the learning curve. calibration: for thresholds. test: for figures alone."""
_SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3, "calibration": 4}
_NUM_LABELS = {16: (1, 3), 64: (3, 6), 256: (4, 10), 1024: (8, 16)}
"""Fewest and most labels of an image, by cells; the last entry that is not larger counts."""


@dataclass(frozen=True)
class Label:
    """A letter and two digits. ``box``: left, top, right, bottom in pixels, end exclusive.

    ``centres``: pixel centres (x, y) of the three glyphs.
    """

    key: str
    value: str
    box: tuple[int, int, int, int]
    centres: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Sample:
    """An image, u8 [H, W, 3], its labels, and which of them is asked for."""

    image: np.ndarray
    labels: tuple[Label, ...]
    asked: int
    background: str

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.image.shape[0] // CELL, self.image.shape[1] // CELL

    @property
    def question(self) -> str:
        """What the user says."""
        return f"{self.labels[self.asked].key}?"

    @property
    def answer(self) -> str:
        """Two digits; right means both match."""
        return self.labels[self.asked].value

    def answer_cells(self) -> np.ndarray:
        """Row-major cells that the box of the asked label touches."""
        left, top, right, bottom = self.labels[self.asked].box
        columns = self.grid[1]
        rows = np.arange(top // CELL, (bottom - 1) // CELL + 1)
        cells: np.ndarray = rows[:, None] * columns + np.arange(
            left // CELL, (right - 1) // CELL + 1
        )
        return cells.ravel()


def held_out(split: str, index: int, grid: tuple[int, int]) -> Sample:
    """Sample ``index`` of a split for images of ``grid`` = (rows, columns) cells.

    Each sample has a generator of its own, so any part of a split can be drawn alone; kinds of
    background take turns, so every six consecutive samples hold each once.
    """
    rng = np.random.default_rng([_SPLIT_SEEDS[split], *grid, index])
    background = BACKGROUNDS[index % len(BACKGROUNDS)]
    return draw(rng, grid, background, label_count(rng, grid), PHOTOS[split])


def label_count(rng: np.random.Generator, grid: tuple[int, int]) -> int:
    """A usual number of labels for an image of this size."""
    cells = grid[0] * grid[1]
    low, high = [span for size, span in _NUM_LABELS.items() if size <= max(cells, 16)][-1]
    return int(rng.integers(low, high + 1))


def draw(
    rng: np.random.Generator,
    grid: tuple[int, int],
    background: str,
    count: int,
    photos: tuple[str, ...],
) -> Sample:
    """One sample with ``count`` labels of different letters, fewer where no room is left."""
    rows, columns = grid
    image = draw_background(rng, background, (columns * CELL, rows * CELL), photos)
    canvas = ImageDraw.Draw(image)
    if background != "page":
        _draw_clutter(rng, canvas, image.size)
    keys = rng.permutation(list(KEYS))[:count]
    labels: list[Label] = []
    for key in keys:
        label = _draw_label(rng, image, canvas, str(key), background, labels)
        if label is not None:
            labels.append(label)
    return Sample(np.asarray(image), tuple(labels), int(rng.integers(len(labels))), background)


def _draw_clutter(
    rng: np.random.Generator, canvas: ImageDraw.ImageDraw, size: tuple[int, int]
) -> None:
    """Thin outlines: rectangles, ellipses and lines."""
    for _ in range(int(rng.integers(0, CLUTTER + 1))):
        xs = np.sort(rng.integers(0, size[0], 2)).tolist()
        ys = np.sort(rng.integers(0, size[1], 2)).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = int(rng.integers(3))
        corners = (xs[0], ys[0], xs[1], ys[1])
        if shape == 0:
            canvas.rectangle(corners, outline=colour)
        elif shape == 1:
            canvas.ellipse(corners, outline=colour)
        else:
            canvas.line(corners, fill=colour, width=int(rng.integers(1, 3)))


def _draw_label(
    rng: np.random.Generator,
    image: Image.Image,
    canvas: ImageDraw.ImageDraw,
    key: str,
    background: str,
    placed: list[Label],
) -> Label | None:
    value = "".join(rng.choice(list(DIGITS), 2))
    face = font(FONTS[int(rng.integers(len(FONTS)))], int(rng.integers(SIZES[0], SIZES[1] + 1)))
    text = key + value
    ink = face.getbbox(text)
    width, height = int(ink[2] - ink[0]), int(ink[3] - ink[1])
    pad = int(rng.integers(*PAD)) if background in ("page", "sign") else 0
    spot = _free_spot(rng, (width + 2 * pad, height + 2 * pad), image.size, placed)
    if spot is None:
        return None
    left, top = spot[0] + pad, spot[1] + pad
    outer = (spot[0], spot[1], left + width + pad, top + height + pad)
    if background == "sign":
        canvas.rectangle((*spot, outer[2] - 1, outer[3] - 1), fill=_colour(rng))
    elif background == "page":
        paper = image.getpixel((0, 0))
        canvas.rectangle((*spot, outer[2] - 1, outer[3] - 1), fill=paper)
    behind = float(np.asarray(image.crop(outer), dtype=np.float64).mean((0, 1)) @ LUMA)
    origin = (left - ink[0], top - ink[1])
    canvas.text(origin, text, font=face, fill=_readable(rng, behind))
    starts = [face.getlength(text[:i]) for i in range(len(text) + 1)]
    middle = top + height / 2
    centres = tuple((origin[0] + (a + b) / 2, middle) for a, b in itertools.pairwise(starts))
    return Label(key, value, outer if pad else (left, top, left + width, top + height), centres)


def _free_spot(
    rng: np.random.Generator, size: tuple[int, int], image: tuple[int, int], placed: list[Label]
) -> tuple[int, int] | None:
    """A corner at which a box of ``size`` overlaps no label; None after ``ATTEMPTS``."""
    room = (image[0] - size[0] - 2 * GAP, image[1] - size[1] - 2 * GAP)
    if min(room) <= 0:
        return None
    for _ in range(ATTEMPTS):
        x, y = GAP + int(rng.integers(room[0])), GAP + int(rng.integers(room[1]))
        if all(
            x + size[0] + GAP <= box[0]
            or box[2] + GAP <= x
            or y + size[1] + GAP <= box[1]
            or box[3] + GAP <= y
            for box in (label.box for label in placed)
        ):
            return x, y
    return None


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


def _readable(rng: np.random.Generator, behind: float) -> tuple[int, ...]:
    """A colour whose brightness differs from ``behind`` by ``CONTRAST`` at least."""
    while True:
        colour = rng.integers(0, 256, 3)
        if abs(float(colour @ LUMA) - behind) >= CONTRAST:
            return tuple(colour.tolist())
