"""Every answer of an evaluation, and means of what was kept, in one file of some 100 kB."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.runner import Outcome

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
"""The committed evaluation, which docs/accuracy.md shows."""
MEANS = ("kept", "prefill", "entered", "layer", "covered")
"""Fields of an outcome of which a mean per kind of background is stored."""


def grid_name(grid: tuple[int, int]) -> str:
    """``8x8``: the key of a grid in the file."""
    return f"{grid[0]}x{grid[1]}"


@dataclass(frozen=True)
class Answers:
    """One job on one grid. ``right``: bool [n]; ``means``: field -> one mean per background."""

    right: np.ndarray
    means: dict[str, list[float | None]]

    def mean(self, field: str, background: str | None = None) -> float | None:
        """Mean of a field over one kind of background or over all; None where it is not known."""
        known = self.means[field]
        if background is not None:
            return known[BACKGROUNDS.index(background)]
        values = [value for value in known if value is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class GridResults:
    """All jobs on samples 0..n-1 of the test split for one grid; ``median``: f32 [n] nats."""

    median: np.ndarray
    answers: dict[str, Answers]

    def __len__(self) -> int:
        return len(self.median)

    def of(self, name: str, background: str | None = None) -> np.ndarray:
        """Right answers of a job, bool, of one kind of background or of all."""
        right = self.answers[name].right
        if background is None:
            return right
        return right[BACKGROUNDS.index(background) :: len(BACKGROUNDS)]


@dataclass(frozen=True)
class Results:
    """An evaluation. ``facts``: where and when; ``grids``: grid name -> results."""

    facts: dict[str, Any]
    grids: dict[str, GridResults]


def summarise(outcome: Outcome) -> Answers:
    """What is stored of an outcome whose samples start at a multiple of the backgrounds."""
    means: dict[str, list[float | None]] = {}
    for field in MEANS:
        values = getattr(outcome, field).astype(np.float64)
        if field == "layer":  # the depth at which the row was pruned, where it was
            values = np.where(values < 0, np.nan, values)
        means[field] = [_mean(values[i :: len(BACKGROUNDS)]) for i in range(len(BACKGROUNDS))]
    return Answers(outcome.right, means)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 5) if len(known) else None


def save(results: Results, path: Path) -> None:
    """Writes the file whole or not at all."""
    grids = {
        name: {
            "samples": len(grid),
            "median": [round(float(m), 4) for m in grid.median],
            "answers": {
                job: {"right": _packed(answers.right), **answers.means}
                for job, answers in grid.answers.items()
            },
        }
        for name, grid in results.grids.items()
    }
    part = path.with_suffix(".part")
    lines = json.dumps({"facts": results.facts, "grids": grids}, separators=(",", ":"))
    part.write_text(lines.replace('"right"', '\n"right"') + "\n", encoding="utf-8")
    os.replace(part, path)


def load(path: Path = RESULTS) -> Results:
    """Inverse of ``save``."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    grids = {}
    for name, grid in stored["grids"].items():
        number = grid["samples"]
        answers = {
            job: Answers(_unpacked(entry.pop("right"), number), entry)
            for job, entry in grid["answers"].items()
        }
        grids[name] = GridResults(np.array(grid["median"], dtype=np.float32), answers)
    return Results(stored["facts"], grids)


def _packed(right: np.ndarray) -> str:
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def _unpacked(text: str, number: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    return bits[:number].astype(bool)
