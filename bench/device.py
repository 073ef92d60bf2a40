"""Runs the rows on a GPU: correctness first, then times, memory and launches, one table.

    python -m bench --device cuda [--quick] [--only TEXT] [--out DIR] [--revision TEXT]

A row or a peer that fails is named with its reason and the others go on. Compiling peers takes most
of the time, so they are compiled for the headline rows only, which come first, and only while time
is left; peers are left out where ours would otherwise not get through all rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import device_report, machine, report
from bench.device_report import DeviceResult
from bench.device_rows import DeviceRow, all_rows
from bench.problem import COMPILED, Problem, Run
from bench.timing import CudaTimer, Timer, ceilings, count_launches, measure
from erase_kernels import _backends, check_status
from erase_kernels._native import STATUS

ROTATION = 2.2  # times the L2 cache that the copies of the operands touch
LEAST_COPIES, MOST_COPIES = 2, 128
HOST_CALLS = 30
ROUND_BUDGET_S = 0.12  # of one implementation of one row
QUICK_BUDGET_S = 0.05
COMPILE_SHARE = 0.75  # of the run's time, after which nothing more is compiled
OURS_S = 0.5  # of one backend of one row, operands included, kept for each row to come
COPY_BYTES, PRODUCT_WIDTH = 1 << 30, 8192


@dataclasses.dataclass
class Session:
    """What the rows of one run share.

    Attributes:
        timer: how calls are timed.
        device: where.
        backends: of ours, those that can run there.
        copy_rate: bytes per second of a large copy.
        multiply_rate: operations per second of a large product.
        until: end of the time, by ``clock``; later rows keep ours alone.
        compile_until: when to stop compiling peers.
        round_budget: seconds of timed rounds of one implementation.
        clock: seconds.
        rows_to_come: after the one that is measured.
    """

    timer: Timer
    device: torch.device
    backends: tuple[str, ...]
    copy_rate: float
    multiply_rate: float
    until: float = math.inf
    compile_until: float = math.inf
    round_budget: float = ROUND_BUDGET_S
    clock: Callable[[], float] = time.monotonic
    rows_to_come: int = 0

    def out_of_time(self) -> bool:
        """Whether what is left is needed for ours."""
        kept = self.rows_to_come * len(self.backends) * OURS_S
        return self.clock() > self.until - kept


def backends_on(device: torch.device) -> tuple[str, ...]:
    """Ours that can run on ``device``."""
    names = [name for name in _backends.BACKENDS if name != "reference"]
    return tuple(name for name in names if not _backends.unavailable_reason(name, device))


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def make_copies(problem: Problem, cache_bytes: int) -> list[Any]:
    """Operands as often as the cache asks for."""
    wanted = math.ceil(ROTATION * cache_bytes / max(problem.touched, 1))
    return [problem.make(i) for i in range(min(max(wanted, LEAST_COPIES), MOST_COPIES))]


def run_row(row: DeviceRow, session: Session) -> DeviceResult:
    """Measures one row; what fails is in the result's ``errors``."""
    result = DeviceResult(
        row.name, session.backends, 0, 0, 0, session.copy_rate, session.multiply_rate, row.target
    )
    try:
        problem = row.problem(session.device)
        copies = make_copies(problem, session.timer.cache_bytes)
    except Exception as error:  # the table says what failed, and the other rows go on
        result.errors |= dict.fromkeys(session.backends, said(error))
        return result
    result.bytes_moved, result.operations = problem.bytes_moved, problem.operations
    result.rotated_bytes = len(copies) * problem.touched
    for backend in session.backends:
        run = _bind(problem, backend)
        if _time(result, backend, run, problem, copies, session, strict=True):
            result.host[backend] = host_seconds(session.timer, run, copies[0])
    for peer, function in problem.peers.items():
        if session.out_of_time():
            result.errors[peer] = "skipped: out of time"
        else:
            _time(result, peer, function, problem, copies, session, strict=False)
    if row.headline and problem.compiled is not None:
        if session.clock() > session.compile_until or session.out_of_time():
            result.errors[COMPILED] = "skipped: no time to compile it"
        else:
            torch.compiler.reset()
            compiled = torch.compile(problem.compiled, dynamic=False, fullgraph=True)
            _time(result, COMPILED, compiled, problem, copies, session, strict=False)
    return result


def _bind(problem: Problem, backend: str) -> Run:
    return lambda operands: problem.ours(backend, operands)


def _time(
    result: DeviceResult, name: str, function: Run, problem: Problem, copies: list[Any],
    session: Session, strict: bool,
) -> bool:  # fmt: skip
    capture = name not in problem.heavy
    try:
        problem.verify(function, strict)
        if strict:
            check_status(session.device)  # a kernel that skipped bad data says so there
        result.seconds[name] = measure(
            session.timer, function, copies, session.round_budget, capture
        )
        result.memory[name] = session.timer.peak_extra(lambda: function(copies[0]))
    except Exception as error:  # as above
        result.errors[name] = said(error)
        return False
    finally:
        if not capture:
            release(session.device)
    return True


def host_seconds(timer: Timer, function: Run, operands: Any) -> float:
    """Time the host takes to start a call, the device working meanwhile."""
    timer.finish()
    start = time.perf_counter()
    for _ in range(HOST_CALLS):
        function(operands)
    taken = time.perf_counter() - start
    timer.finish()
    return taken / HOST_CALLS


def release(device: torch.device) -> None:
    """Gives the memory of the last row back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run_rows(
    rows: list[DeviceRow],
    session: Session,
    done: Callable[[list[DeviceResult], DeviceResult], None] = lambda *_: None,
) -> list[DeviceResult]:
    """Measures all rows, headline rows first; results are in the order of the rows.

    ``done`` hears of the results so far after each, and of the last.
    """
    found: dict[int, DeviceResult] = {}
    order = sorted(range(len(rows)), key=lambda place: not rows[place].headline)
    for place in order:
        session.rows_to_come = len(rows) - len(found) - 1
        found[place] = run_row(rows[place], session)
        done([found[i] for i in sorted(found)], found[place])
        release(session.device)
    return [found[i] for i in sorted(found)]


def add_launches(rows: list[DeviceRow], results: list[DeviceResult], session: Session) -> None:
    """Counts the launches of the headline rows; last, since a profiler slows what follows."""
    for row, result in zip(rows, results, strict=True):
        if not row.headline or session.clock() > session.until:
            continue
        for backend in session.backends:
            if backend not in result.seconds:
                continue
            try:
                problem = row.problem(session.device)
                operands = problem.make(0)
                count = count_launches(lambda p=problem, b=backend, o=operands: p.ours(b, o))
            except Exception as error:  # as above
                result.errors[f"launches of {backend}"] = said(error)
                continue
            if count is not None:
                result.launches[backend] = count
        release(session.device)


def open_session(budget: float, quick: bool) -> Session:
    """Starts the clock and measures what the device can do."""
    start = time.monotonic()
    device = torch.device("cuda", torch.cuda.current_device())
    timer = CudaTimer(device)
    copy_rate, multiply_rate = ceilings(timer, device, COPY_BYTES, PRODUCT_WIDTH)
    release(device)
    return Session(
        timer,
        device,
        backends_on(device),
        copy_rate,
        multiply_rate,
        until=start + budget,
        compile_until=start if quick else start + COMPILE_SHARE * budget,
        round_budget=QUICK_BUDGET_S if quick else ROUND_BUDGET_S,
    )


def facts_of(session: Session, revision: str) -> dict[str, object]:
    """Provenance, with what the device reached in this run."""
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    return machine.provenance("cuda", command, revision) | {
        "backends": ", ".join(session.backends),
        **({"native CUDA kernels": STATUS.cuda_build} if "native" in session.backends else {}),
        "L2 cache": f"{session.timer.cache_bytes / (1 << 20):.0f} MiB",
        "copy bandwidth": f"{session.copy_rate / 1e12:.2f} TB/s, read plus written",
        "matmul rate": f"{session.multiply_rate / 1e12:.0f} TFLOP/s, bf16, {PRODUCT_WIDTH}^3",
    }


def main(arguments: argparse.Namespace) -> int:
    """Everything, from the options that `bench.__main__` read."""
    if not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device", file=sys.stderr)
        return 2
    rows = [row for row in all_rows() if arguments.only in row.name]
    rows = [row for row in rows if row.headline or not arguments.quick]
    if not rows:
        print(f"no row contains {arguments.only!r}", file=sys.stderr)
        return 2
    start = time.monotonic()
    session = open_session(arguments.budget, arguments.quick)
    facts = facts_of(session, arguments.revision)
    partial = bool(arguments.only or arguments.quick or arguments.no_write)
    base = Path(arguments.out) if arguments.out else None if partial else report.RESULTS
    folder = base and base / report.directory_name(str(facts["device"]))

    def done(results: list[DeviceResult], last: DeviceResult) -> None:
        taken = time.monotonic() - start
        facts["rows"] = f"{len(results)} of {len(rows)}, {taken:.0f} s"
        print(f"[{taken:5.0f} s] {last.row}", file=sys.stderr, flush=True)
        if folder:
            device_report.write(folder, results, facts)

    results = run_rows(rows, session, done)
    add_launches(rows, results, session)
    console = Console(width=None if sys.stdout.isatty() else 230)
    for name in ("device", "revision", "copy bandwidth", "matmul rate", "backends", "rows"):
        console.print(f"{name}: {facts[name]}", markup=False)
    device_report.show(results, console)
    if folder:
        for path in device_report.write(folder, results, facts):
            console.print(f"wrote {path}")
    wrong = [r.row for r in results if any(backend in r.errors for backend in r.backends)]
    return int(bool(wrong) or not session.backends)
