"""Chooses the bed's thresholds: ``python -m bench.accuracy.calibrate``.

Writes ``calibration.json`` (the whole table, so that the choice can be replayed without a model)
and ``weights/method.json`` (the method, for the demo and for ``EraseConfig.from_json``).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.accuracy import search
from bench.accuracy.methods import Found
from bench.accuracy.model import TEXT_LAYERS, WEIGHTS, load_model
from bench.accuracy.results import grid_name
from bench.accuracy.runner import BATCH, Bed

CALIBRATION = Path(__file__).parent / "calibration.json"
METHOD = "method.json"
"""Beside the weights."""
OTHER_LEVELS = (1, 3)
"""Numbers of levels beside the default of four (paper, table 12)."""
ALPHAS = (0.45, 0.65, 0.85)
"""Weights of accuracy in equation 2 (paper, table 12)."""


def found(path: Path = CALIBRATION) -> Found:
    """All settings that the stored tables give; the same every time."""
    table = stored_table(path)
    return Found(
        default=search.least_loss(table, search.LEVELS),
        edges=search.least_loss(stored_table(path, "edges"), search.LEVELS),
        levels={n: search.least_loss(table, n) for n in OTHER_LEVELS},
        alphas={a: search.weighted(table, search.LEVELS, a) for a in ALPHAS},
    )


def stored_table(path: Path = CALIBRATION, score: str = "entropy") -> search.Table:
    """What was measured with a score of stage 1, "entropy" or "edges"."""
    return search.from_json(json.loads(path.read_text(encoding="utf-8"))[score])


def sample_counts(path: Path = CALIBRATION) -> dict[str, int]:
    """Grid name -> calibration samples, right unpruned or not."""
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["samples"]
    return counts


def layer_scan(path: Path = CALIBRATION) -> list[float]:
    """Accuracy when stage 2 alone prunes after each layer, on the calibration split."""
    scan: list[float] = json.loads(path.read_text(encoding="utf-8"))["layer_scan"]
    return scan


def bar() -> Progress:
    """A progress bar with the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the model.")] = WEIGHTS,
    output: Annotated[Path, typer.Option(help="The table and what was chosen.")] = CALIBRATION,
    part: Annotated[float, typer.Option(help="Share of the samples, for a try.")] = 1.0,
) -> None:
    """Measure stage 1 on the calibration split and choose thresholds and ratios."""
    if part != 1 and output == CALIBRATION:
        raise typer.BadParameter("a try needs a file of its own", param_hint="--output")
    bed = Bed(load_model(weights))
    scans = (TEXT_LAYERS - 1) * -(-search.SCAN_SAMPLES // BATCH)
    with bar() as progress:
        task = progress.add_task("calibration", total=2 * search.measurements(part) + scans)

        def advance() -> None:
            progress.advance(task)

        stored: dict[str, Any] = {
            "samples": {grid_name(grid): n for grid, n in search.sizes(part).items()},
            "layer_scan": search.scan_layers(bed, TEXT_LAYERS, advance),
        }
        for score in ("entropy", "edges"):
            stored[score] = search.as_json(search.measure(bed, advance, score, part))
    _write(output, json.dumps(stored, separators=(",", ":")).replace('],"', '],\n"'))
    chosen = found(output).default
    if output == CALIBRATION and weights == WEIGHTS:
        _write(weights / METHOD, chosen.method().to_json())
    print(f"thresholds {chosen.thresholds}, ratios {chosen.ratios}")
    print(f"stage 1 prunes {chosen.pruned:.1%} and loses {chosen.lost:.2%} of the answers there")


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    typer.run(main)
