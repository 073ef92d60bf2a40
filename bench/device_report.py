"""Results of a GPU's rows: shares of what the device can do, targets, files, the printed table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import device_wins
from bench.device_rows import Target
from bench.problem import COMPILED, EAGER
from bench.report import write_atomically
from bench.rows import PLAIN, PUBLISHED
from bench.timing import CALLS, DeviceTiming

PEERS = (PUBLISHED, PLAIN, COMPILED, EAGER)
MIB = 1 << 20
COPY, MULTIPLY = "copy bandwidth", "matmul rate"


@dataclasses.dataclass
class DeviceResult:
    """One row, measured: every backend and every peer.

    Attributes:
        row: its name.
        backends: those of ours that were tried.
        bytes_moved: least traffic of the task, read plus written.
        operations: of the task; 0 where moving bytes is all of it.
        rotated_bytes: touched by the calls of one round before operands come again.
        copy_rate: bytes per second of a large copy in the same run.
        multiply_rate: operations per second of a large bf16 product in the same run.
        target: what was expected.
        seconds: backend or peer -> time on the device.
        memory: backend or peer -> peak extra bytes.
        host: backend -> seconds that the host takes to start one call.
        launches: backend -> kernels and copies of one call, where counted.
        errors: backend or peer -> why there is no figure.
    """

    row: str
    backends: tuple[str, ...]
    bytes_moved: int
    operations: int
    rotated_bytes: int
    copy_rate: float
    multiply_rate: float
    target: Target
    seconds: dict[str, DeviceTiming] = dataclasses.field(default_factory=dict)
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    host: dict[str, float] = dataclasses.field(default_factory=dict)
    launches: dict[str, int] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    def floor(self) -> tuple[float, str]:
        """The least time the task can take on this device, and what bounds it."""
        memory = self.bytes_moved / self.copy_rate
        arithmetic = self.operations / self.multiply_rate
        return (arithmetic, MULTIPLY) if arithmetic > memory else (memory, COPY)

    def share(self, name: str, kind: str) -> float:
        """Share of the copy bandwidth or matmul rate that ``name`` reaches."""
        work, rate = self.bytes_moved, self.copy_rate
        if kind == MULTIPLY:
            work, rate = self.operations, self.multiply_rate
        return work / self.seconds[name].median / rate

    def ratio(self, backend: str, peer: str) -> float:
        """How many times longer ``peer`` takes."""
        return self.seconds[peer].median / self.seconds[backend].median

    def missed(self, backend: str) -> list[str]:
        """Targets that ``backend`` does not meet, in words; ours must lose to no peer."""
        if backend not in self.seconds:
            return [self.errors.get(backend, "not measured")]
        target, found = self.target, []
        micro = self.seconds[backend].median * 1e6
        if target.microseconds is not None and micro > target.microseconds:
            found.append(f"{micro:.1f} us, wanted {target.microseconds:g}")
        if self.seconds[backend].how == CALLS:
            found.append("makes the host wait")
        for peer in PEERS:
            least = target.ratios.get(peer, 1.0)
            if peer in self.seconds and self.ratio(backend, peer) < least:
                found.append(f"{self.ratio(backend, peer):.2f}x {peer}, wanted {least:g}x")
        extra = self.memory.get(backend)
        if None not in (target.extra_bytes, extra) and extra > target.extra_bytes:
            found.append(f"{extra / MIB:.2f} MiB extra, wanted {target.extra_bytes / MIB:.2f}")
        if target.copy_share is not None and self.share(backend, COPY) < target.copy_share:
            share = self.share(backend, COPY)
            found.append(f"{share:.0%} of the copy bandwidth, wanted {target.copy_share:.0%}")
        launches = self.launches.get(backend)
        if None not in (target.launches, launches) and launches > target.launches:
            found.append(f"{launches} launches, wanted {target.launches}")
        return found

    def open_questions(self, backend: str) -> list[str]:
        """Targets that nothing measured speaks of."""
        unknown = [
            f"no {peer} ({self.errors.get(peer, 'not run')})"
            for peer in self.target.ratios
            if peer not in self.seconds
        ]
        if self.target.launches is not None and backend not in self.launches:
            unknown.append("launches not counted")
        return unknown

    def fastest(self) -> str:
        """The backend with the least time.

        Raises:
            ValueError: none was timed.
        """
        timed = [backend for backend in self.backends if backend in self.seconds]
        return min(timed, key=lambda backend: self.seconds[backend].median)

    def verdict(self, backend: str) -> str:
        """One cell of the table."""
        missed, unknown = self.missed(backend), self.open_questions(backend)
        if missed:
            return "missed: " + "; ".join(missed + unknown)
        if unknown:
            return "open: " + "; ".join(unknown)
        return "met" if self.target != Target() else "ok"


HEADINGS = (
    "operator, shape, dtype",
    "backend",
    "us (quartiles)",
    "% of copy / matmul",
    "x floor",
    "x published",
    "x plain",
    "x compiled",
    "x eager attn",
    "host us",
    "extra MiB ours / published / plain",
    "target",
)


def cells(result: DeviceResult, backend: str) -> list[str]:
    """One line of the table."""
    if backend not in result.seconds:
        return [result.row, backend, *["-"] * (len(HEADINGS) - 3), result.verdict(backend)]
    ours = result.seconds[backend]
    floor, _ = result.floor()
    ratios = []
    for peer in PEERS:
        if peer in result.seconds:
            mark = "*" if result.seconds[peer].how == CALLS else ""
            ratios.append(f"{result.ratio(backend, peer):.1f}{mark}")
        else:
            ratios.append("-")
    shares = f"{result.share(backend, COPY):.0%}"
    if result.operations:
        shares += f" / {result.share(backend, MULTIPLY):.0%}"
    extra = [result.memory.get(name) for name in (backend, PUBLISHED, PLAIN)]
    return [
        result.row,
        backend,
        f"{ours.median * 1e6:.1f} ({ours.q1 * 1e6:.1f}-{ours.q3 * 1e6:.1f})"
        + ("*" if ours.how == CALLS else ""),
        shares,
        f"{ours.median / floor:.1f}",
        *ratios,
        f"{result.host[backend] * 1e6:.0f}" if backend in result.host else "-",
        " / ".join("-" if size is None else f"{size / MIB:.2f}" for size in extra),
        result.verdict(backend),
    ]


NOTE = (
    "Times are medians with quartiles, of CUDA-graph replays on cold caches; * where the host must "
    "take part, so that calls are timed as they come. Ratios are peer over ours: the published "
    "formula in eager torch, the best plain torch, the same under torch.compile, and the weights "
    "of eager attention. Extra memory is the allocator's peak during a call, results included. "
    "Repeated compaction of one cache moves the same slots again: the same traffic."
)


def show(results: list[DeviceResult], console: Console) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        left = heading in (HEADINGS[0], "backend", "target")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for result in results:
        for backend in result.backends:
            style = "red" if result.missed(backend) else None
            table.add_row(*cells(result, backend), style=style)
    console.print(table)
    for line in device_wins.section(results):
        console.print(line, markup=False)
    for result in results:
        for name, reason in result.errors.items():
            console.print(f"{result.row}: {name}: {reason}", markup=False)


def markdown(results: list[DeviceResult], facts: dict[str, Any]) -> str:
    """The committed page."""
    lines = ["# Operator benchmarks", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", NOTE, "", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for result in results:
        for backend in result.backends:
            lines.append("| " + " | ".join(cells(result, backend)) + " |")
    lines += device_wins.section(results)
    missing = [
        f"- {result.row}: {name}: {reason}"
        for result in results
        for name, reason in result.errors.items()
    ]
    if missing:
        lines += ["", "Without a figure:", "", *missing]
    return "\n".join(lines) + "\n"


def write(folder: Path, results: list[DeviceResult], facts: dict[str, Any]) -> list[Path]:
    """Writes operators.json and operators.md."""
    entries = []
    for result in results:
        floor, kind = result.floor()
        verdicts = {backend: result.verdict(backend) for backend in result.backends}
        computed = {"floor_seconds": floor, "floor_kind": kind, "verdicts": verdicts}
        entries.append(dataclasses.asdict(result) | computed)
    data = {"provenance": facts, "results": entries}
    texts = {
        "operators.json": json.dumps(data, indent=1) + "\n",
        "operators.md": markdown(results, facts),
    }
    return write_atomically(folder, texts)


def load_results(path: Path) -> tuple[dict[str, Any], list[DeviceResult]]:
    """Provenance and rows of a file that ``write`` made."""
    data = json.loads(path.read_text())
    fields = {field.name for field in dataclasses.fields(DeviceResult)}
    results = []
    for entry in data["results"]:
        kept = {name: value for name, value in entry.items() if name in fields}
        kept["backends"] = tuple(kept["backends"])
        kept["target"] = Target(**kept["target"])
        kept["seconds"] = {name: DeviceTiming(**t) for name, t in kept["seconds"].items()}
        results.append(DeviceResult(**kept))
    return data["provenance"], results
