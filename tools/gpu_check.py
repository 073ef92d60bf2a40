"""Checks everything on a GPU machine with one command, and no network.

    python -m tools.gpu_check [--quick] [--only STEP ...] [--out DIR] [--revision TEXT] [--dry-run]

Uses the calling python, which has torch, triton, transformers and pytest, and nvcc. Builds the
native library for this GPU, runs all operator and integration tests (CUDA graphs and the search for
hidden synchronisation among them), the native kernels under compute-sanitizer where there is one,
then measures; goes on after a step that fails, and ends with a summary and status 1 if any did.
Results, logs and a table go to bench/results/<device>, or to ``--out``: at most eight files.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_plan import LOGS, MEASURED, NAMES, plan
from tools.gpu_runner import TOTAL_S, counted, facts_of, passed, run_all
from tools.gpu_steps import Result, last_json, write_atomically
from tools.native_library import ROOT

RESULTS = ROOT / "bench" / "results"
MAX_FILES = 8  # under --out
WRITTEN = 3  # of them, beside the benchmarks' results
MAX_FAILURES = 15  # tests named per step in the summary
MAX_LINE = 160  # characters
MAX_TAIL = 1800  # characters of a failed step's log in the summary
MAX_FOUND = 8000  # characters of the summary about all failed steps together


def failures(result: Result, log: str, space: int = MAX_FOUND) -> list[str]:
    """Tests that a pytest log names as failed, or the end of any other failed step's log.

    ``space`` is how many characters there may be.
    """
    if not result.bad:
        return []
    lines = re.findall(r"^(?:\[gw\d+\] \[ *\d+%\] )?((?:FAILED|ERROR) .*)$", log, re.MULTILINE)
    lines = list(dict.fromkeys(lines))  # as it fails, and in the end
    shown = max(min(MAX_FAILURES, space // MAX_LINE), 1)
    named = [line[:MAX_LINE] for line in lines[:shown]]
    named += [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return named or result.tail[-min(MAX_TAIL, space) :].splitlines()


def summary(results: Sequence[Result], logs: Path) -> str:
    """What to read first; short enough for the last screen of a log."""
    lines = []
    space = MAX_FOUND // max(sum(result.bad for result in results), 1)
    for result in results:
        log = logs / f"{result.step.name}.log"
        found = failures(result, log.read_text(errors="replace") if log.exists() else "", space)
        if found:
            lines += [f"\n--- {result.step.name}: {result.status} {result.note}", *found]
    facts = facts_of(results)
    lines += ["", ", ".join(f"{key} {value}" for key, value in facts.items())]
    for result in results:
        state = f"{result.step.name:<12} {result.status:<10} {result.seconds:6.1f} s"
        lines.append("  ".join(filter(None, [state, counted(result), result.note])))
    seconds = sum(result.seconds for result in results)
    verdict = "PASSED" if passed(results) else "FAILED"
    lines.append(f"gpu-check {verdict} in {seconds:.0f} s")
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    rows = ["# GPU check\n", "| | |", "|---|---|"]
    rows += [f"| {key} | {value} |" for key, value in report["facts"].items()]
    rows += [f"| revision | {report['revision']} |", f"| date | {report['date']} |", ""]
    rows += ["| step | status | tests | seconds | command |", "|---|---|---|---:|---|"]
    for step in report["steps"]:
        tests = ", ".join(f"{number} {word}" for word, number in step["tests"].items())
        state = f"{step['status']}{': ' + step['note'] if step['note'] else ''}"
        command = shlex.join(step["command"][1:])
        rows.append(
            f"| {step['name']} | {state} | {tests} | {step['seconds']} | `python {command}` |"
        )
    return "\n".join([*rows, *first_calls(report.get("first_calls", {})), ""])


def first_calls(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table: operators, and a column per backend."""
    if not found:
        return []
    backends = list(dict.fromkeys(backend for by in found.values() for backend in by))
    rows = ["", "Milliseconds of the first call in a fresh process, CUDA being initialised:", ""]
    rows += ["| operator | " + " | ".join(backends) + " |", "|---|" + "---:|" * len(backends)]
    for operator, by in found.items():
        cells = [first_call(by.get(backend, {})) for backend in backends]
        rows.append(f"| {operator} | " + " | ".join(cells) + " |")
    return rows


def first_call(figures: dict[str, Any]) -> str:
    """One cell; where a first call had to compile, the figure is the next process's."""
    if "first_ms" not in figures:
        return str(figures.get("error", "-"))
    compiling = figures.get("compiling_ms")
    return f"{figures['first_ms']}" + (f" ({compiling} when compiling)" if compiling else "")


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def write(results: Sequence[Result], logs: Path, out: Path, revision: str) -> None:
    """gpu-check.json, gpu-check.md, and all logs in one file."""
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "passed": passed(results),
        "facts": facts_of(results),
        "revision": revision,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "steps": [result.facts() for result in results],
    }
    for result in results:
        if result.step.name == "first-calls":
            report |= last_json(result.tail)
    write_atomically(out / "gpu-check.json", json.dumps(report, indent=1) + "\n")
    write_atomically(out / "gpu-check.md", markdown(report))
    parts = [f"===== {log.stem}\n{log.read_text(errors='replace')}" for log in _logs(results, logs)]
    write_atomically(out / "gpu-check.log", "\n".join(parts))


def _logs(results: Sequence[Result], logs: Path) -> list[Path]:
    paths = [logs / f"{result.step.name}.log" for result in results]
    return [path for path in paths if path.exists()]


def git_revision() -> str:
    """Commit of the sources, marked where they differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git)"
    return done.stdout.strip()


def copy_results(measured: Path, out: Path) -> None:
    """What the benchmarks wrote, flat; bundled where it is more than the folder may hold."""
    found = [path for path in sorted(measured.rglob("*")) if path.is_file()]
    if len(found) <= MAX_FILES - WRITTEN and len({path.name for path in found}) == len(found):
        for path in found:
            write_atomically(out / path.name, path.read_text())
        return
    with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
        for path in found:
            archive.add(path, path.relative_to(measured))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no build, few benchmarks")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="STEP", help=", ".join(NAMES))
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results and logs; default bench/results/<device>, "
        "of a partial check build/gpu-check",
    )
    parser.add_argument("--revision", default="", help="of the sources, where there is no git")
    parser.add_argument(
        "--limit", type=float, default=TOTAL_S, metavar="SECONDS", help="of all steps together"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args()
    steps = plan(arguments)
    if arguments.dry_run:
        for step in steps:
            settings = " ".join(f"{key}={value}" for key, value in step.environment.items())
            command = shlex.join(step.command)
            print(f"{step.name} (at most {step.limit_s:.0f} s): {settings} {command}".strip())
        return 0

    revision = arguments.revision or git_revision()
    partial = bool(arguments.quick or arguments.only)

    def folder(results: Sequence[Result]) -> Path:
        device = facts_of(results).get("device")
        return arguments.out or (RESULTS / slug(device) if device and not partial else LOGS)

    def after(results: Sequence[Result]) -> None:
        write(results, LOGS, folder(results), revision)
        copy_results(MEASURED, folder(results))

    results = run_all(steps, LOGS, after, arguments.limit)
    print(summary(results, LOGS))
    print(f"wrote {folder(results)}")
    return 0 if passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
