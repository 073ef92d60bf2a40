"""Runs the benchmarks and prints one table, on the CPU one per number of threads.

    python -m bench [--threads 1 2] [--only TEXT] [--no-write]
    python -m bench --device cuda [--quick] [--only TEXT] [--out DIR] [--revision TEXT]

On the CPU each number of threads is one process that times all rows; extra memory is measured in
another one, with one thread. What runs on a GPU is in `bench.device`. Results go to
bench/results/<device>/, with everything needed to judge them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from bench import machine, report
from bench.report import RESULTS
from bench.rows import Row, all_rows

DEVICE_BUDGET_S = 190.0


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def time_rows(threads: int, only: str) -> dict[str, report.RowTiming]:
    """Runs the pytest-benchmark suite in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "timings.json"
        command = [sys.executable, "-m", "pytest", "bench", "-q", "--no-header"]
        command += ["-p", "no:cacheprovider", "--benchmark-quiet", "--benchmark-disable-gc"]
        command += [f"--threads={threads}", f"--benchmark-json={path}"]
        if only:
            command += ["-k", only]
        done = subprocess.run(
            command, cwd=machine.ROOT, env=environment(threads), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nthe benchmark suite failed")
        return report.read_timings(path)


def measure_memory(only: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "bench.memory", "1", only]
    done = subprocess.run(
        command, cwd=machine.ROOT, env=environment(1), stdout=subprocess.PIPE, check=True
    )
    measured: dict[str, dict[str, int]] = json.loads(done.stdout)
    return measured


def measure(rows: list[Row], threads: list[int], only: str) -> list[report.Result]:
    console = Console(stderr=True)
    with console.status("extra memory"):
        memory = measure_memory(only)
    cycles = machine.cycles_per_second()
    results = []
    for count in threads:
        with console.status(f"{count} thread{'s' if count > 1 else ''}: {len(rows)} rows"):
            timings = time_rows(count, only)
        torch.set_num_threads(count)
        bandwidth = machine.copy_bandwidth()
        for row in rows:
            timing = timings[row.name]
            floor = report.floor_of(timing, bandwidth, cycles, count)
            extra = memory[row.name]
            results.append(report.make_result(row, count, timing.seconds, extra, floor))
        console.print(
            f"{count} thread{'s' if count > 1 else ''}: clock {cycles / 1e9:.2f} GHz, "
            f"copy {bandwidth / 1e9:.1f} GB/s (read plus written)"
        )
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    parser.add_argument(
        "--revision", default="", help="of the sources, where git cannot tell", metavar="TEXT"
    )
    cpu = parser.add_argument_group("--device cpu")
    cpu.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    cuda = parser.add_argument_group("--device cuda")
    cuda.add_argument("--quick", action="store_true", help="headline rows, nothing compiled")
    cuda.add_argument("--out", default="", metavar="DIR", help="in place of bench/results")
    cuda.add_argument(
        "--budget",
        type=float,
        default=DEVICE_BUDGET_S,
        metavar="SECONDS",
        help="after which peers are left out",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.device == "cuda":
        from bench import device

        return device.main(arguments)
    rows = [row for row in all_rows() if arguments.only in row.name]
    if not rows:
        raise SystemExit(f"no row contains {arguments.only!r}")
    results = measure(rows, arguments.threads, arguments.only)
    console = Console(width=None if sys.stdout.isatty() else 200)
    report.show(results, console)
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    facts = machine.provenance("cpu", command, arguments.revision)
    if not arguments.no_write and not arguments.only:
        folder = RESULTS / report.directory_name(str(facts["device"]))
        for path in report.write(folder, results, facts):
            console.print(f"wrote {path.relative_to(machine.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
