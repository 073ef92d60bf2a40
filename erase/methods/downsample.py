"""Smaller images: the baseline that spends the same number of tokens without choosing any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image

from erase.methods._parts import Settings, check_int, check_ratio

WIDE_MODES = ("I", "F")
"""With 16 (``I;16``, ``I;16B``, ...) or 32 bits per level: Pillow's conversion to RGB cuts off what
lies above 255, and no image says which level is white."""

LEAST_OF_BUDGET = Fraction(9, 10)
"""A grid of cells uses at least this share of its budget, rounded down to whole cells: with less
freedom in the count, the aspect ratio would suffer."""


@dataclass(frozen=True)
class Downsample(Settings):
    """Makes images so small that they have ``keep_ratio`` of their visual tokens.

    It is no method of the pruning protocol, for it prunes nothing: call ``prepare`` on the images
    and give the result to the model's processor, without ``erase.prune``.

    Args:
        keep_ratio: share of an image's cells, in (0, 1].

    Raises:
        TypeError, ValueError: a field is out of its range; the message names it.
    """

    keep_ratio: float

    def __post_init__(self) -> None:
        check_ratio("keep_ratio", self.keep_ratio)
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))

    def prepare(self, images: Sequence[Image.Image], cell: int = 28) -> list[Image.Image]:
        """The images at ``smaller_grid`` cells, as RGB, resized with bicubic interpolation.

        An image's own grid is its sides divided by ``cell``, each rounded to the nearest whole
        number (halves to even) and at least 1, as the Qwen processors round; their bounds on the
        number of pixels are not applied. So give images that lie within those bounds, and lower
        the processor's lower bound where it would enlarge the small images again.

        Args:
            images: PIL images with 8 bits or fewer per level, of any size; they stay as they are.
            cell: side of a visual token in pixels: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL.

        Returns:
            New images, as many as there were, with sides that are multiples of ``cell``. With
            ``keep_ratio=1`` an RGB image with such sides keeps its pixels.

        Raises:
            TypeError: not a sequence of PIL images, or ``cell`` no int.
            ValueError: ``cell`` is not positive; an image has no pixels, 16 or 32 bits per level,
                or a mode that Pillow cannot convert to RGB. Nothing has been resized then.
        """
        check_int("cell", cell, 1)
        if isinstance(images, Image.Image) or not isinstance(images, Sequence):
            got = type(images).__name__
            raise TypeError(f"images: expected a sequence of PIL images, got {got}")
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(f"images: expected PIL images, got {type(image).__name__}")
        smaller = []
        for image in [_as_rgb(image) for image in images]:
            rows, columns = smaller_grid(
                max(1, round(image.height / cell)),
                max(1, round(image.width / cell)),
                self.keep_ratio,
            )
            size = columns * cell, rows * cell
            smaller.append(image.resize(size, Image.Resampling.BICUBIC))
        return smaller


def _as_rgb(image: Image.Image) -> Image.Image:
    """ValueError where that would lose the picture, or there is none."""
    if not image.width or not image.height:
        raise ValueError(
            f"images: expected at least one pixel, got {image.width} x {image.height} pixels"
        )
    expected = "images: expected a mode with 8 bits per level that Pillow converts to RGB"
    if image.mode.partition(";")[0] in WIDE_MODES:
        raise ValueError(f"{expected}, got mode {image.mode!r}; scale its levels to 8 bits first")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{expected}, got mode {image.mode!r}: {error}") from error


def smaller_grid(rows: int, columns: int, keep_ratio: float) -> tuple[int, int]:
    """Rows and columns of a grid with about ``keep_ratio`` of the cells and the same proportions.

    The budget is ``b = max(1, int(rows · columns · keep_ratio))`` cells. Among all grids of
    ``max(1, floor(0.9 b))`` to b cells it is the one whose ratio of columns to rows is nearest to
    the given one (smallest absolute difference of logarithms, in exact arithmetic); ties go to more
    cells, then to fewer rows. With ``keep_ratio=1`` that is the given grid.
    """
    budget = max(1, int(rows * columns * keep_ratio))
    least = max(1, math.floor(budget * LEAST_OF_BUDGET))

    def rank(grid: tuple[int, int]) -> tuple[Fraction, int, int]:
        across, down = grid[1] * rows, grid[0] * columns
        # exp of |log(columns ratio) - log(rows ratio)|: the same order, without rounding.
        return Fraction(max(across, down), min(across, down)), -grid[0] * grid[1], grid[0]

    return min(_grids(least, budget), key=rank)


def _grids(least: int, most: int) -> Iterator[tuple[int, int]]:
    """Every grid (rows, columns) of ``least`` to ``most`` cells."""
    for rows in range(1, most + 1):
        for columns in range(max(1, -(-least // rows)), most // rows + 1):
            yield rows, columns
