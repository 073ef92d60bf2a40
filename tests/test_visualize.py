"""Pictures: what is drawn is what was given, and files are written whole or not at all."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from erase.extras import MissingExtraError
from erase.visualize import (
    DROPPED_COLOUR,
    DROPPED_SHARE,
    Kept,
    PictureRow,
    check_format,
    dim_dropped,
    entropy_map,
    kept_mask,
    pruning_figure,
    save_figure,
)

CELL = 28


def picture_row(rows: int = 3, columns: int = 5, selections: int = 2, seed: int = 0) -> PictureRow:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, rows * CELL, columns * CELL)
    chosen = [
        torch.randperm(rows * columns, generator=generator)[: 4 + i].sort().values
        for i in range(selections)
    ]
    return PictureRow(
        title=f"picture {seed}",
        image=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        cell=CELL,
        entropy=torch.rand(rows * columns, generator=generator) * math.log(256),
        median=1.2346,
        selections=[Kept(f"selection {i}", cells, "a note") for i, cells in enumerate(chosen)],
    )


def panels(figure: Figure) -> list:
    """The axes that hold a picture, in reading order; colour bars left out."""
    return [axis for axis in figure.axes if axis.get_images()]


def test_entropy_map_is_row_major() -> None:
    drawn = entropy_map(torch.arange(6.0), (2, 3))
    assert drawn.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("entropy", [torch.zeros(5), torch.zeros(2, 3)])
def test_entropy_map_refuses_what_does_not_fill_the_grid(entropy: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="entropy: expected 6 cells"):
        entropy_map(entropy, (2, 3))


def test_kept_mask_marks_exactly_the_cells() -> None:
    assert kept_mask(torch.tensor([0, 4, 5]), (2, 3)).tolist() == [
        [True, False, False],
        [False, True, True],
    ]
    assert not kept_mask(torch.empty(0, dtype=torch.int64), (2, 3)).any()


@pytest.mark.parametrize("cell", [-1, 6])
def test_kept_mask_refuses_cells_outside(cell: int) -> None:
    with pytest.raises(ValueError, match="cells: expected indices of 6 cells"):
        kept_mask(torch.tensor([0, cell]), (2, 3))


def test_dim_dropped_touches_dropped_cells_only() -> None:
    row = picture_row()
    before = row.image.clone()
    kept = row.selections[0].cells
    drawn = dim_dropped(row.image, kept, CELL)
    assert torch.equal(row.image, before)
    assert drawn.dtype == np.uint8
    tint = np.array(DROPPED_COLOUR, dtype=np.float32)
    for index in range(15):
        y, x = index // 5 * CELL, index % 5 * CELL
        original = before[:, y : y + CELL, x : x + CELL].permute(1, 2, 0).numpy()
        shown = drawn[y : y + CELL, x : x + CELL]
        if index in kept:
            assert np.array_equal(shown, original)
        else:
            dimmed = original * (1 - DROPPED_SHARE) + tint * DROPPED_SHARE
            assert np.abs(shown - dimmed).max() <= 0.51


def test_figure_shows_the_data_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    rows = [picture_row(), picture_row(4, 2, seed=1)]
    figure = pruning_figure(rows, "both")
    axes = panels(figure)
    assert len(axes) == 2 * 4
    for line, row in enumerate(rows):
        image, entropies, *selections = axes[4 * line : 4 * line + 4]
        original = row.image.permute(1, 2, 0).numpy()
        assert np.array_equal(image.get_images()[0].get_array(), original)
        drawn = entropies.get_images()[0]
        assert np.array_equal(drawn.get_array(), row.entropy.numpy().reshape(row.grid))
        assert drawn.get_clim() == (0.0, math.log(256))
        assert drawn.get_cmap().name == "cividis"
        assert "median 1.235 nats" in entropies.get_title()
        for axis, kept in zip(selections, row.selections, strict=True):
            expected = dim_dropped(row.image, kept.cells, CELL)
            assert np.array_equal(axis.get_images()[0].get_array(), expected)
            assert axis.get_title() == f"{kept.title}\na note"
    bars = [axis for panel in axes for axis in panel.child_axes]
    assert [bar.get_ylabel() for bar in bars] == ["nats", "nats"]
    assert all(bar.get_ylim() == (0.0, math.log(256)) for bar in bars)


@pytest.mark.parametrize("rows", [[], [picture_row(), picture_row(selections=1)]])
def test_figure_refuses_unequal_rows(rows: list[PictureRow]) -> None:
    with pytest.raises(ValueError, match="rows: expected"):
        pruning_figure(rows)


def test_written_pixels_show_the_mask(tmp_path: Path) -> None:
    """Reads the file back: kept cells of a white image are white in it, the others dark."""
    rows, columns = 4, 6
    kept = torch.tensor([0, 3, 7, 8, 14, 23])
    row = PictureRow(
        title="white",
        image=torch.full((3, rows * CELL, columns * CELL), 255, dtype=torch.uint8),
        cell=CELL,
        entropy=torch.linspace(0, 5, rows * columns),
        median=2.0,
        selections=[Kept("kept", kept)],
    )
    figure = pruning_figure([row])
    save_figure(figure, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as opened:
        assert opened.format == "PNG"
        width, height = figure.get_size_inches() * figure.dpi
        assert opened.size == (int(width), int(height))
        written = np.asarray(opened.convert("L"))
    box = panels(figure)[2].get_window_extent()
    mask = np.zeros((rows, columns), dtype=bool)
    for y in range(rows):
        for x in range(columns):
            column = box.x0 + (x + 0.5) * box.width / columns
            line = written.shape[0] - box.y1 + (y + 0.5) * box.height / rows
            mask[y, x] = written[round(line), round(column)] > 250
    assert np.flatnonzero(mask).tolist() == kept.tolist()


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.pdf", "a.svg", "no_ending"])
def test_save_figure_knows_matplotlibs_formats(tmp_path: Path, name: str) -> None:
    figure = pruning_figure([picture_row()])
    save_figure(figure, tmp_path / name)
    head = (tmp_path / name).read_bytes()[:8]
    expected = {"a.pdf": b"%PDF", "a.svg": b"<?xml"}.get(name, b"\x89PNG")
    assert head.startswith(expected)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_save_figure_refuses_other_endings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected an ending out of .*png.*, got 'a\.docx'"):
        check_format(tmp_path / "a.docx")
    with pytest.raises(ValueError, match="path: expected an ending"):
        save_figure(pruning_figure([picture_row()]), tmp_path / "a.docx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half_written(self: Figure, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="No space left"):
        save_figure(pruning_figure([picture_row()]), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = r"matplotlib.*pip install 'erase-kernels\[plots\]'"
    with pytest.raises(MissingExtraError, match=command):
        pruning_figure([picture_row()])
    with pytest.raises(MissingExtraError, match=command):
        check_format(Path("a.png"))
