"""Pictures of what a prefill saw and kept. Needs matplotlib (the ``plots`` extra).

Figures are built without pyplot, so no global state and no window system is touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from erase.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAY_LEVELS = 256
MAX_ENTROPY = math.log(GRAY_LEVELS)
"""Nats: a cell whose gray levels are all equally frequent."""
COLOUR_MAP = "cividis"
"""Uniform to the eye, also with a colour vision deficiency."""
DROPPED_COLOUR = (32, 36, 48)
DROPPED_SHARE = 0.82
"""How much of ``DROPPED_COLOUR`` covers a dropped cell: its content can still be guessed."""
PANEL_WIDTH = 4.4
"""Inches."""
MAX_PANEL_HEIGHT = 2 * PANEL_WIDTH
"""Inches; taller images are drawn narrower."""
TITLE_HEIGHT = 0.5
"""Inches above each row of panels."""
COLOUR_BAR = (1.02, 0.0, 0.04, 1.0)
"""Left, bottom, width, height as shares of the map's panel."""
LONGEST_TITLE = 44
"""Characters that fit above a panel; longer ones lose their middle."""
DPI = 130
DEFAULT_FORMAT = "png"


@dataclass(frozen=True)
class Kept:
    """One selection of cells. ``cells`` ascending; ``note`` goes under the title."""

    title: str
    cells: Tensor
    note: str = ""


@dataclass(frozen=True)
class PictureRow:
    """One image with its entropies and the selections made of it.

    ``image`` u8 [3, H, W]; ``cell``: its side in pixels; ``entropy`` f32 [n] nats, row-major.
    """

    title: str
    image: Tensor
    cell: int
    entropy: Tensor
    median: float
    selections: Sequence[Kept]
    note: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.image.shape[1] // self.cell, self.image.shape[2] // self.cell


def entropy_map(entropy: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Entropies f32 [n] as f32 [rows, columns]; ValueError where they do not fill the grid."""
    if entropy.ndim != 1 or len(entropy) != grid[0] * grid[1]:
        raise ValueError(
            f"entropy: expected {grid[0] * grid[1]} cells for a {grid[0]}x{grid[1]} grid, "
            f"got shape {list(entropy.shape)}"
        )
    return np.asarray(entropy.detach().cpu().float().numpy().reshape(grid))


def kept_mask(cells: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """bool [rows, columns], true for the listed cells; ValueError for a cell outside the grid."""
    indices = cells.detach().cpu().numpy()
    size = grid[0] * grid[1]
    if indices.size and not (indices.min() >= 0 and indices.max() < size):
        raise ValueError(
            f"cells: expected indices of {size} cells, got {indices.min()}..{indices.max()}"
        )
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask.reshape(grid)


def dim_dropped(image: Tensor, cells: Tensor, cell: int) -> np.ndarray:
    """u8 [H, W, 3]: kept cells as they are, the others covered with a dark tint."""
    picture = np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())
    grid = (picture.shape[0] // cell, picture.shape[1] // cell)
    pixels = kept_mask(cells, grid).repeat(cell, axis=0).repeat(cell, axis=1)
    tint = np.array(DROPPED_COLOUR, dtype=np.float32)
    dimmed = picture * (1 - DROPPED_SHARE) + tint * DROPPED_SHARE
    return np.where(pixels[..., None], picture, np.rint(dimmed).astype(np.uint8))


def pruning_figure(rows: Sequence[PictureRow], title: str = "") -> Figure:
    """One line of panels per image: the image, its entropy map, and each selection.

    All maps share one scale, 0 to ln 256 nats. Every row must have equally many selections.

    Raises:
        ValueError: no rows, unequal rows, or cells and entropies that do not fit the image.
        MissingExtraError: matplotlib is not installed.
    """
    require("plots", "Drawing pictures")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not rows or len({len(row.selections) for row in rows}) != 1:
        raise ValueError("rows: expected at least one row, all with equally many selections")
    heights = [_panel_height(row.image) for row in rows]
    columns = 2 + len(rows[0].selections)
    top = 0.4 if title else 0.0
    size = (PANEL_WIDTH * columns, sum(heights) + TITLE_HEIGHT * len(rows) + top)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=size, dpi=DPI, layout=layout)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(figure, line, row)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure


def _panel_height(image: Tensor) -> float:
    return min(PANEL_WIDTH * image.shape[1] / image.shape[2], MAX_PANEL_HEIGHT)


def _draw_row(figure: Any, axes: Sequence[Any], row: PictureRow) -> None:
    height, width = row.image.shape[1:]
    _show(axes[0], row.image.detach().cpu().permute(1, 2, 0).numpy(), row.title, row.note)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    drawn = axes[1].imshow(
        entropy_map(row.entropy, row.grid),
        cmap=COLOUR_MAP,
        vmin=0.0,
        vmax=MAX_ENTROPY,
        extent=extent,
        interpolation="nearest",
    )
    _label(axes[1], "entropy of each cell", f"median {row.median:.3f} nats")
    bar = figure.colorbar(drawn, cax=axes[1].inset_axes(COLOUR_BAR))
    bar.set_label("nats", fontsize=9)
    bar.set_ticks([0, 1, 2, 3, 4, 5, MAX_ENTROPY], labels=["0", "1", "2", "3", "4", "5", "ln 256"])
    bar.ax.tick_params(labelsize=8)
    # White on black: readable on the dark and the light end of the map alike.
    bar.ax.axhline(row.median, color="black", linewidth=3.5)
    bar.ax.axhline(row.median, color="white", linewidth=1.5)
    for axis, kept in zip(axes[2:], row.selections, strict=True):
        _show(axis, dim_dropped(row.image, kept.cells, row.cell), kept.title, kept.note)


def _show(axis: Any, picture: np.ndarray, title: str, note: str) -> None:
    axis.imshow(picture, interpolation="antialiased")
    _label(axis, title, note)


def _label(axis: Any, title: str, note: str) -> None:
    if len(title) > LONGEST_TITLE:
        half = LONGEST_TITLE // 2
        title = f"{title[:half]}…{title[-half:]}"
    # File names may hold dollar signs, which would start a formula.
    axis.set_title(f"{title}\n{note}" if note else title, fontsize=10, parse_math=False)
    axis.set_xticks([])
    axis.set_yticks([])


def check_format(path: Path) -> str:
    """The picture format that the ending of ``path`` names, "png" where it has none.

    Raises:
        ValueError: no such format.
        MissingExtraError: matplotlib is not installed.
    """
    require("plots", "Drawing pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    form = path.suffix.lstrip(".").lower() or DEFAULT_FORMAT
    if form not in known:
        raise ValueError(
            f"path: expected an ending out of {', '.join(sorted(known))}, got {path.name!r}"
        )
    return form


def save_figure(figure: Figure, path: Path) -> None:
    """Writes ``figure`` whole or not at all: into a file beside ``path``, then renamed over it.

    Raises:
        ValueError: the ending of ``path`` is no picture format.
        OSError: the folder is missing or cannot be written to.
    """
    form = check_format(path)
    written = path.with_name(f".{path.stem}.{os.getpid()}.{form}")
    try:
        figure.savefig(written, format=form)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
