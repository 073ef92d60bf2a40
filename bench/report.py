"""Ratios, floors and targets from raw timings; a rich table, and files written atomically."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import ROOT
from bench.rows import OURS, PLAIN, PUBLISHED, Row

RESULTS = ROOT / "bench" / "results"
PEERS = (PUBLISHED, PLAIN)
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call: median, lower and upper quartile, and how many rounds."""

    median: float
    q1: float
    q3: float
    rounds: int


@dataclasses.dataclass(frozen=True)
class RowTiming:
    """All implementations of a row, and the work its task cannot avoid."""

    seconds: dict[str, Timing]
    bytes_moved: int
    increments: int


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table, measured."""

    row: str
    threads: int
    seconds: dict[str, Timing]
    memory: dict[str, int]  # peak extra bytes
    floor: float  # seconds
    floor_kind: str
    targets: dict[str, float]
    memory_target: float | None
    memory_peer: str

    def ratio(self, peer: str) -> float:
        return self.seconds[peer].median / self.seconds[OURS].median

    def ratio_range(self, peer: str) -> tuple[float, float]:
        """The ratio of the quartiles furthest apart, and nearest."""
        ours, other = self.seconds[OURS], self.seconds[peer]
        return other.q1 / ours.q3, other.q3 / ours.q1

    @property
    def memory_share(self) -> float:
        return self.memory[OURS] / max(self.memory[self.memory_peer], 1)

    def missed(self) -> list[str]:
        """Targets this row does not meet, in words."""
        found = [
            f"{self.ratio(peer):.2f}x {peer}, wanted {self.targets.get(peer, 1.0):g}x"
            for peer in PEERS
            if self.ratio(peer) < self.targets.get(peer, 1.0)
        ]
        if self.memory_target is not None and self.memory_share > self.memory_target:
            found.append(
                f"{self.memory_share:.1%} of the memory of {self.memory_peer}, "
                f"wanted {self.memory_target:.0%}"
            )
        return found


def floor_of(timing: RowTiming, bandwidth: float, cycles: float, threads: int) -> tuple[float, str]:
    """The least time the task can take here, and what bounds it."""
    memory = timing.bytes_moved / bandwidth
    histogram = timing.increments / (cycles * threads)
    if histogram > memory:
        return histogram, "one increment per cycle"
    return memory, "copy bandwidth"


def make_result(
    row: Row, threads: int, seconds: dict[str, Timing], memory: dict[str, int],
    floor: tuple[float, str],
) -> Result:  # fmt: skip
    return Result(
        row.name, threads, seconds, memory, *floor, row.targets, row.memory_target, row.memory_peer
    )


def read_timings(path: Path) -> dict[str, RowTiming]:
    """Row -> timings, from pytest-benchmark's JSON."""
    found: dict[str, RowTiming] = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        stats, info = entry["stats"], entry["extra_info"]
        empty = RowTiming({}, info["bytes_moved"], info["increments"])
        timing = Timing(stats["median"], stats["q1"], stats["q3"], stats["rounds"])
        found.setdefault(info["row"], empty).seconds[info["implementation"]] = timing
    return found


HEADINGS = (
    "operator and shape",
    "ours ms (quartiles)",
    "published",
    "plain torch",
    "times floor",
    "extra MiB ours / published / plain",
    "target",
)


def cells(result: Result) -> list[str]:
    """One line of the table; ratios are medians, with the range of the quartiles."""
    ours = result.seconds[OURS]
    ratios = []
    for peer in PEERS:
        low, high = result.ratio_range(peer)
        ratios.append(f"{result.ratio(peer):.2f}x ({low:.2f}-{high:.2f})")
    extra = " / ".join(f"{result.memory[name] / MIB:.2f}" for name in (OURS, *PEERS))
    missed = result.missed()
    return [
        result.row,
        f"{ours.median * 1e3:.3f} ({ours.q1 * 1e3:.3f}-{ours.q3 * 1e3:.3f})",
        *ratios,
        f"{ours.median / result.floor:.1f} ({result.floor_kind})",
        extra,
        "missed: " + "; ".join(missed) if missed else "met",
    ]


def show(results: list[Result], console: Console) -> None:
    for threads in sorted({result.threads for result in results}):
        table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}; ratios: peer / ours")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
        for result in results:
            if result.threads == threads:
                style = "red" if result.missed() else None
                table.add_row(*cells(result), style=style)
        console.print(table)


def page(
    title: str, facts: dict[str, Any], headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A committed page of one table."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(results: list[Result], facts: dict[str, Any]) -> str:
    lines = ["# Operator benchmarks", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "Times are medians with quartiles; ratios are peer over ours. Extra memory is the rise of",
        "resident memory during a call, results included, measured with one thread.",
    ]
    for threads in sorted({result.threads for result in results}):
        lines += ["", f"## Threads: {threads}", "", "| " + " | ".join(HEADINGS) + " |"]
        lines += ["|" + " --- |" * len(HEADINGS)]
        lines += [
            "| " + " | ".join(cells(result)) + " |"
            for result in results
            if result.threads == threads
        ]
    return "\n".join(lines) + "\n"


def directory_name(device: str) -> str:
    """A device's name as a folder: lower case, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_atomically(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes files into ``folder``; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.part"
        temporary.write_text(text)
        os.replace(temporary, folder / name)
    return [folder / name for name in texts]


def write(folder: Path, results: list[Result], facts: dict[str, Any]) -> list[Path]:
    """Writes operators.json and operators.md."""
    data = {"provenance": facts, "results": [dataclasses.asdict(r) for r in results]}
    texts = {
        "operators.json": json.dumps(data, indent=1) + "\n",
        "operators.md": markdown(results, facts),
    }
    return write_atomically(folder, texts)


def load_results(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Provenance and rows of a file that ``write`` made."""
    data = json.loads(path.read_text())
    rows = []
    for entry in data["results"]:
        seconds = {name: Timing(**timing) for name, timing in entry.pop("seconds").items()}
        rows.append(Result(seconds=seconds, **entry))
    return data["provenance"], rows
