"""Runs every job on the test split, in several processes, and compares evaluations."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

from bench.accuracy import calibrate
from bench.accuracy.intervals import binomial
from bench.accuracy.model import load_model
from bench.accuracy.results import GridResults, Results, grid_name, summarise
from bench.accuracy.runner import BATCH, Bed, Job, Outcome
from bench.machine import cpu_name

GRIDS = ((8, 8), (16, 16))
"""224 and 448 pixels: 64 and 256 visual tokens."""

MOST_DIFFERING = 0.05
MOST_SHIFT = 0.005

_bed: list[Bed] = []
"""Of a worker process."""


def _prepare(weights: Path) -> None:
    """One thread each: answers then do not depend on the number of workers, nor on the cores."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    _bed.append(Bed(load_model(weights)))


def _batch(grid: tuple[int, int], at: int, wanted: list[Job]) -> dict[str, Outcome]:
    return _bed[0].run("test", range(at, at + BATCH), grid, wanted)


@contextmanager
def _cancelled_early(pool: ProcessPoolExecutor) -> Iterator[None]:
    """A failed batch or an interrupt ends the run without the batches that have not begun."""
    try:
        yield
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def evaluate(
    weights: Path, samples: int, wanted: list[Job], workers: int, facts: dict[str, object]
) -> Results:
    """All jobs on the first samples of the test split, whole batches, for every grid.

    Batches run in ``workers`` processes of one thread each.
    """
    starts = range(0, samples, BATCH)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_prepare, initargs=(weights,)
    )
    with calibrate.bar() as progress, pool, _cancelled_early(pool):
        task = progress.add_task("batches", total=len(GRIDS) * len(starts))
        futures = {
            grid: [pool.submit(_batch, grid, at, wanted) for at in starts]
            for grid in reversed(GRIDS)  # the slow ones first
        }
        for future in as_completed([f for some in futures.values() for f in some]):
            future.result()
            progress.advance(task)
    grids = {}
    for grid in GRIDS:
        parts = [future.result() for future in futures[grid]]
        outcomes = {name: Outcome.joined([part[name] for part in parts]) for name, _ in wanted}
        answers = {name: summarise(outcome) for name, outcome in outcomes.items()}
        grids[grid_name(grid)] = GridResults(outcomes["stage1"].median, answers)
    return Results(facts, grids)


def check_comparable(wanted: list[Job], committed: Results) -> None:
    """ValueError where a job of ``wanted`` is not in the committed evaluation."""
    for name, grid in committed.grids.items():
        missing = [job for job, _ in wanted if job not in grid.answers]
        if missing:
            raise ValueError(f"committed: {name} has no {', '.join(missing)}; run with --write")


def differences(ours: Results, committed: Results) -> list[str]:
    """Where ``ours`` is not the committed evaluation.

    The committed one holds the same samples and more. On the same samples, accuracies may differ
    by no more than the interval printed beside the committed one, ``MOST_DIFFERING`` of the
    answers may differ (roundings of another machine), and shares kept at a given final ratio by
    ``MOST_SHIFT``.
    """
    found = []
    for name, grid in ours.grids.items():
        theirs = committed.grids[name]
        number = min(len(grid), len(theirs))
        for job in grid.answers:
            mine, known = grid.of(job)[:number], theirs.of(job)[:number]
            printed = binomial(int(theirs.of(job).sum()), len(theirs))
            reach = max(printed.high - printed.value, printed.value - printed.low)
            gap, other = abs(mine.mean() - known.mean()), (mine != known).mean()
            kept = [answers.answers[job].mean("kept") or 0 for answers in (grid, theirs)]
            # Rows without a final ratio keep what their images ask for, and here are fewer images.
            shifted = "@" in job and abs(kept[0] - kept[1]) > MOST_SHIFT
            if gap > reach or other > MOST_DIFFERING or shifted:
                found.append(
                    f"{name} {job}: {mine.mean():.3f}, committed {known.mean():.3f} on the same "
                    f"{number} samples; {other:.1%} of the answers differ; kept {kept[0]:.3f}, "
                    f"committed {kept[1]:.3f}"
                )
    return found


def describe(weights: Path) -> dict[str, object]:
    """Where an evaluation ran, and the size of its model."""
    return {
        "device": cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in load_model(weights).parameters()),
    }
