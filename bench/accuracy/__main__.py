"""Measures accuracy: ``python -m bench.accuracy``; compares it with the committed evaluation."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.accuracy import calibrate, page, tables
from bench.accuracy.evaluate import check_comparable, describe, differences, evaluate
from bench.accuracy.methods import jobs
from bench.accuracy.model import WEIGHTS
from bench.accuracy.results import RESULTS, load, save
from bench.machine import ROOT

SAMPLES = 510
QUICK_SAMPLES = 120
WRITTEN_SAMPLES = 2010
OUTPUT = ROOT / "build" / "accuracy" / "results.json"


def main(
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per image size, whole batches of 30.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Few samples, main methods only.")] = False,
    weights: Annotated[Path, typer.Option(help="Folder of the model.")] = WEIGHTS,
    output: Annotated[Path, typer.Option(help="File of all answers.")] = OUTPUT,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    write: Annotated[bool, typer.Option(help="Replace the committed results and page.")] = False,
) -> None:
    """Accuracy of the reading model, unpruned and pruned by every method.

    Compared with the committed evaluation on the same samples, unless it is replaced.
    """
    usual = WRITTEN_SAMPLES if write else QUICK_SAMPLES if quick else SAMPLES
    count = usual if samples is None else samples
    if write and (quick or count < WRITTEN_SAMPLES):
        reason = f"the page needs all rows on {WRITTEN_SAMPLES} samples"
        raise typer.BadParameter(reason, param_hint="--write")
    wanted = jobs(calibrate.found(), quick)
    committed = None if write else load()
    if committed is not None:
        check_comparable(wanted, committed)
    start = time.perf_counter()
    results = evaluate(weights, count, wanted, workers, describe(weights))
    output.parent.mkdir(parents=True, exist_ok=True)
    save(results, output)
    console = Console()
    for name, grid in results.grids.items():
        console.print(f"\n{name} cells, {len(grid)} samples", highlight=False)
        console.print(tables.main_table(grid), highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{time.perf_counter() - start:.0f} s", highlight=False)
    if committed is None:
        page.write(results)
        save(results, RESULTS)
    elif wrong := differences(results, committed):
        sys.exit("not what docs/accuracy.md says:\n" + "\n".join(wrong))
    else:
        console.print("as docs/accuracy.md says, within its intervals", highlight=False)


if __name__ == "__main__":
    typer.run(main)
