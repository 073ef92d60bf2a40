"""What goes into the pictures of ``erase inspect`` and ``erase demo``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from erase.demo.reading import Reading
from erase.demo.run import DemoResult
from erase.inspection import Inspection
from erase.tables import answer_text
from erase.visualize import Kept, PictureRow, pruning_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inspection_panels(name: str, seen: Inspection) -> PictureRow:
    """Image, entropy map and stage-1 cells (as the paper's Figures 5 and 8)."""
    kind = "complex, late" if seen.late else "simple, early"
    return PictureRow(
        title=name,
        image=seen.image,
        cell=seen.cell,
        entropy=seen.entropy,
        median=seen.median,
        selections=[
            Kept(
                _counted("stage 1 keeps", len(seen.kept), len(seen.entropy)),
                seen.kept,
                f"level {seen.level} ({kind} layer {seen.layer})",
            )
        ],
        note=_size_note(seen.image.shape, len(seen.entropy)),
    )


def demo_figure(results: Sequence[DemoResult], readings: Sequence[Reading] = ()) -> Figure:
    """One line per picture: image, entropy map, stage-1 cells, final cells; readings first."""
    panels = [_reading_panels(reading) for reading in readings]
    return pruning_figure(panels + [_demo_panels(result) for result in results])


def _reading_panels(reading: Reading) -> PictureRow:
    picture = reading.picture
    answers = (
        f"unpruned says {answer_text(reading.unpruned)}, pruned says {answer_text(reading.pruned)}"
    )
    title = f"{picture.name}: asked {picture.prompt.question}, printed {picture.printed}"
    return _result_panels(reading, title, answers, "")


def _demo_panels(result: DemoResult) -> PictureRow:
    note = _size_note(result.image.shape, result.report.rows[0].visual_tokens)
    return _result_panels(result, result.picture.name, note, "; the weights are random")


def _result_panels(
    result: DemoResult | Reading, title: str, note: str, of_stage_2: str
) -> PictureRow:
    row = result.report.rows[0]
    image, size = row.images[0], row.visual_tokens
    final = "stage 2 had nothing to drop"
    if row.layer is not None:
        final = f"after decoder layer {row.layer}{of_stage_2}"
    return PictureRow(
        title=title,
        image=result.image,
        cell=result.cell,
        entropy=image.entropy,
        median=image.median,
        selections=[
            Kept(
                _counted("stage 1 keeps", len(image.kept), size),
                image.kept,
                f"level {image.level}: cells of highest entropy",
            ),
            Kept(_counted("stage 2 keeps", len(row.kept), size), result.final_cells, final),
        ],
        note=note,
    )


def _counted(what: str, part: int, whole: int) -> str:
    return f"{what} {part} of {whole} ({part / whole:.1%})"


def _size_note(shape: Sequence[int], cells: int) -> str:
    return f"{shape[2]} x {shape[1]} pixels, {cells} cells"
