"""The learning curve as CSV and PNG."""

from __future__ import annotations

import csv
import os
from pathlib import Path

COLUMNS = (
    "step",
    "seconds",
    "glyph_loss",
    "answer_loss",
    "exact_match_64",
    "exact_match_256",
)


def write(points: list[dict[str, float]], folder: Path) -> None:
    """Writes ``curve.csv`` and ``curve.png`` into a folder, each whole or not at all."""
    table, picture = folder / "curve.csv", folder / "curve.png"
    part = folder / "curve.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for point in points:
            writer.writerow({name: f"{value:.6g}" for name, value in point.items()})
    os.replace(part, table)
    part = folder / "curve.part.png"
    _draw(points, part)
    os.replace(part, picture)


def _draw(points: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, matches = figure.subplots(1, 2)
    for axes, names, title in (
        (losses, COLUMNS[2:4], "training loss"),
        (matches, COLUMNS[4:], "exact match, validation split"),
    ):
        for name in names:
            known = [(p["step"], p[name]) for p in points if name in p]
            if known:
                axes.plot(*zip(*known, strict=True), label=name.replace("_", " "))
        axes.set_title(title)
        axes.set_xlabel("optimiser steps")
        axes.grid(alpha=0.3)
        axes.legend()
    losses.set_yscale("log")
    figure.savefig(path, dpi=110)
