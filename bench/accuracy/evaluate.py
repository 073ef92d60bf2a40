"""Runs every job on the test split, in several processes, and compares evaluations."""

from __future__ import annotations

import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
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

_bed: list[Bed] = []
"""Of a worker process."""


def _prepare(weights: Path) -> None:
    """One thread each: answers then do not depend on the number of workers, nor on the cores."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    _bed.append(Bed(load_model(weights)))


def _batch(grid: tuple[int, int], at: int, wanted: list[Job]) -> dict[str, Outcome]:
    return _bed[0].run("test", range(at, at + BATCH), grid, wanted)


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
    with calibrate.bar() as progress, pool:
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


def differences(ours: Results, committed: Results) -> list[str]:
    """What of ``ours`` lies outside the committed figures' intervals.

    The committed evaluation holds the same samples and more: accuracies of the same samples are
    compared, within the interval that so few samples have.
    """
    found = []
    for name, grid in ours.grids.items():
        number = min(len(grid), len(committed.grids[name]))
        ours_first, theirs = grid.first(number), committed.grids[name].first(number)
        for job in grid.answers:
            mine, known = ours_first.of(job), theirs.of(job)
            share = binomial(int(known.sum()), len(known))
            if not share.low <= float(mine.mean()) <= share.high:
                found.append(f"{name} {job}: {mine.mean():.3f}, committed {share} %")
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
