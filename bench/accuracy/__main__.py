"""Measures accuracy: ``python -m bench.accuracy``; compares it with the committed evaluation."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console

from bench.accuracy import calibrate, page, tables
from bench.accuracy.intervals import binomial
from bench.accuracy.methods import jobs
from bench.accuracy.model import WEIGHTS, load_model
from bench.accuracy.results import RESULTS, GridResults, Results, grid_name, load, save, summarise
from bench.accuracy.runner import BATCH, Bed, Job
from bench.machine import ROOT, cpu_name

GRIDS = ((8, 8), (16, 16))
"""224 and 448 pixels: 64 and 256 visual tokens."""
SAMPLES = 510
QUICK_SAMPLES = 120
OUTPUT = ROOT / "build" / "accuracy" / "results.json"


def evaluate(bed: Bed, samples: int, wanted: list[Job], facts: dict[str, object]) -> Results:
    """All jobs on the first samples of the test split, for every grid."""
    grids = {}
    batches = -(-samples // BATCH)
    with calibrate.bar() as progress:
        task = progress.add_task("samples", total=len(GRIDS) * batches * len(wanted))
        for grid in GRIDS:
            outcomes = bed.run("test", range(samples), grid, wanted, lambda: progress.advance(task))
            answers = {name: summarise(outcome) for name, outcome in outcomes.items()}
            grids[grid_name(grid)] = GridResults(outcomes["stage1"].median, answers)
    return Results(facts, grids)


def differences(ours: Results, committed: Results) -> list[str]:
    """What of ``ours`` lies outside the committed figures' intervals.

    The committed evaluation holds the same samples and more: accuracies of the same samples are
    compared, within the interval that so few samples have.
    """
    found = []
    for name, grid in ours.grids.items():
        theirs = committed.grids[name].first(len(grid))
        for job in grid.answers:
            mine, known = grid.of(job), theirs.of(job)
            share = binomial(int(known.sum()), len(known))
            if not share.low <= float(mine.mean()) <= share.high:
                found.append(f"{name} {job}: {mine.mean():.3f}, committed {share} %")
    return found


def _facts(bed: Bed) -> dict[str, object]:
    return {
        "device": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in bed.model.parameters()),
    }


def main(
    samples: Annotated[int, typer.Option(help="Samples per image size.")] = SAMPLES,
    quick: Annotated[bool, typer.Option(help="Few samples, main methods only.")] = False,
    weights: Annotated[Path, typer.Option(help="Folder of the model.")] = WEIGHTS,
    output: Annotated[Path, typer.Option(help="File of all answers.")] = OUTPUT,
    write: Annotated[bool, typer.Option(help="Replace the committed results and page.")] = False,
) -> None:
    """Accuracy of the reading model, unpruned and pruned by every method."""
    bed = Bed(load_model(weights))
    count = QUICK_SAMPLES if quick else samples
    start = time.perf_counter()
    results = evaluate(bed, count, jobs(calibrate.found(), quick), _facts(bed))
    output.parent.mkdir(parents=True, exist_ok=True)
    save(results, RESULTS if write else output)
    console = Console()
    for name, grid in results.grids.items():
        console.print(f"\n{name} cells, {len(grid)} samples", highlight=False)
        console.print(tables.main_table(grid), highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{time.perf_counter() - start:.0f} s", highlight=False)
    if write:
        page.write(results)
        return
    wrong = differences(results, load())
    if wrong:
        sys.exit("not what docs/accuracy.md says:\n" + "\n".join(wrong))
    console.print("within the intervals of docs/accuracy.md", highlight=False)


if __name__ == "__main__":
    typer.run(main)
