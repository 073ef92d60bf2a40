"""What Triton makes of every kernel, on every architecture, found out without a GPU.

    python -m tools.triton_report [--with DIR ...] [--architecture 80 ...] [--check-one]
                                  [--markdown FILE]

Compiles what the ``compilations`` of each module of erase_kernels.triton_kernels lists, with the
installed triton and with those under ``--with``, and prints registers, shared memory and the
instruction mix of the machine code. Fails on a spill, a stack frame, more shared memory than the
architecture has, a fused multiply-add on the luma path, an operator without a kernel, and whatever
does not compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from erase_kernels._backends import TRITON_OPERATORS
from tools import sass
from tools.kernel_facts import (
    COLUMNS,
    SHARED_KIB,
    faults,
    markdown_table,
    mix_cells,
    operator_of,
    text_table,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "erase_kernels.triton_kernels"
WORKER = "tools.triton_compile"
PROCESSES = 2
TIMEOUT_S = 600  # of one architecture with one triton
INSTALLED = Path()  # stands for the triton of this environment
ONE_ARCHITECTURE = 90  # for --check-one


@dataclasses.dataclass(frozen=True)
class Job:
    """One architecture with one triton: a process."""

    triton: Path
    architecture: int
    modules: tuple[str, ...]
    one: bool = False


@dataclasses.dataclass
class Outcome:
    """What a job found: facts of `tools.triton_compile` per kernel, and what broke the job."""

    job: Job
    version: str = "?"
    nvdisasm: Path = Path("nvdisasm")
    planned: int = 0
    kernels: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    broken: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        return f"sm_{self.job.architecture}, triton {self.version}"


def environment(job: Job, cache: str) -> dict[str, str]:
    """The job's triton first on the path, compiling for real, into a cache that starts empty."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    path = [] if job.triton == INSTALLED else [str(job.triton.resolve())]
    inherited = kept.get("PYTHONPATH", "")
    path += [str(ROOT), *([inherited] if inherited else [])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": cache}


def run_job(job: Job) -> Outcome:
    """Compiles everything; a kernel that kills the process is skipped the next time."""
    outcome, start, skip = Outcome(job), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="triton-report-") as scratch:
        while not outcome.broken:
            events, status, output = _run_worker(job, skip, Path(scratch))
            last = _take(outcome, events)
            if status == 0:
                break
            tail = "\n".join(output.strip().splitlines()[-8:])
            end = f"the compiler process ended with status {status}: {tail}"
            if last is None or last["event"] != "start":
                outcome.broken = end
            else:
                outcome.kernels.append({**last, "error": end})
                skip = last["number"] + 1
        if not outcome.broken:
            _add_mixes(outcome)
    outcome.seconds = time.monotonic() - start
    if not outcome.broken and outcome.planned != len(outcome.kernels):
        outcome.broken = f"{outcome.planned} kernels planned, {len(outcome.kernels)} compiled"
    return outcome


def _run_worker(job: Job, skip: int, scratch: Path) -> tuple[list[dict[str, Any]], int, str]:
    path = scratch / f"events-{skip}"
    command = [sys.executable, "-m", WORKER, f"--architecture={job.architecture}"]
    command += [f"--module={name}" for name in job.modules]
    command += [f"--skip={skip}", f"--events={path}", *(["--one"] * job.one)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(job, str(scratch / "cache")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = -1, f"more than {TIMEOUT_S} s"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines], status, output


def _take(outcome: Outcome, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    for event in events:
        if event["event"] == "triton":
            outcome.version, outcome.nvdisasm = event["version"], Path(event["nvdisasm"])
        elif event["event"] == "planned":
            outcome.planned = event["count"]
        elif event["event"] == "done":
            outcome.kernels.append(event)
    return events[-1] if events else None


def _add_mixes(outcome: Outcome) -> None:
    compiled = [kernel for kernel in outcome.kernels if "error" not in kernel]
    cubins = [Path(kernel["cubin"]).read_bytes() for kernel in compiled]
    try:
        counted = sass.mixes(outcome.nvdisasm, outcome.job.architecture, cubins)
    except (OSError, RuntimeError) as error:
        outcome.broken = str(error)
        return
    for kernel, mix in zip(compiled, counted, strict=True):
        kernel["mix"] = mix


def uncovered(kernels: Iterable[dict[str, Any]]) -> list[str]:
    """Operators that have a Triton backend and no compilation by their name."""
    covered = {operator_of(kernel["name"]) for kernel in kernels}
    return [operator for operator in TRITON_OPERATORS if operator not in covered]


def problems(outcome: Outcome, operators: bool) -> list[str]:
    """Everything that fails the report, a line each."""
    found = [f"{outcome.title}: {outcome.broken}"] if outcome.broken else []
    for kernel in outcome.kernels:
        for fault in faults(kernel, outcome.job.architecture):
            found.append(f"{outcome.title}: {kernel['name']}: {fault}")
    if operators and not outcome.broken:
        missing = uncovered(outcome.kernels)
        found += [f"{outcome.title}: no compilation of {name}" for name in missing]
    return found


# --- output --------------------------------------------------------------------------------------


def table(outcome: Outcome) -> list[list[str]]:
    """Heading and one row per kernel."""
    rows = [["kernel", "warps", "regs", "stack", "smem", "spill", *COLUMNS, "s"]]
    for kernel in outcome.kernels:
        name = kernel["name"] + (" (luma)" if kernel["luma"] else "")
        if "mix" not in kernel:
            rows.append([name, "failed", *[""] * (len(rows[0]) - 2)])
            continue
        mix = kernel["mix"]
        numbers = [kernel[key] for key in ("warps", "registers", "stack", "shared")]
        cells = [name, *map(str, numbers), str(mix["local"]), *mix_cells(mix)]
        rows.append([*cells, f"{kernel['seconds']:.1f}"])
    return rows


def show(outcome: Outcome) -> str:
    heading = f"\n{outcome.title}: {len(outcome.kernels)} kernels in {outcome.seconds:.0f} s"
    return "\n".join([heading, *text_table(table(outcome))])


def markdown(outcomes: Sequence[Outcome]) -> str:
    parts = [
        "# What Triton makes of the kernels\n",
        "Written by `make gpu-report`, without a GPU.\n",
    ]
    for outcome in outcomes:
        parts += [f"## {outcome.title}\n", *markdown_table(table(outcome)), ""]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="tritons", type=Path, action="append", default=[])
    parser.add_argument("--architecture", type=int, nargs="+", choices=SHARED_KIB)
    parser.add_argument("--module", action="append", help="instead of the operators' modules")
    parser.add_argument("--check-one", action="store_true", help="one configuration per kernel")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    for folder in arguments.tritons:
        if not (folder / "triton").is_dir():
            parser.error(f"no triton under {folder}")
    default = [ONE_ARCHITECTURE] if arguments.check_one else list(SHARED_KIB)
    modules = arguments.module or sorted({f"{PACKAGE}.{m}" for m in TRITON_OPERATORS.values()})
    jobs = [
        Job(triton, architecture, tuple(modules), arguments.check_one)
        for triton in [INSTALLED, *arguments.tritons]
        for architecture in arguments.architecture or default
    ]
    start, outcomes, found = time.monotonic(), [], []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for outcome in pool.map(run_job, jobs):
            outcomes.append(outcome)
            found += problems(outcome, operators=not arguments.module)
            print(show(outcome), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(outcomes))
    compiled = sum(len(outcome.kernels) for outcome in outcomes)
    print(f"\n{compiled} compilations in {time.monotonic() - start:.0f} s, {len(found)} problems")
    for problem in found:
        print(f"FAILED {problem}")
    return 1 if found or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
