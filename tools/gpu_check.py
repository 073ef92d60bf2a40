"""Checks everything on a GPU machine with one command, and no network.

    python -m tools.gpu_check [--quick] [--only STEP ...] [--out DIR] [--revision TEXT] [--dry-run]

Uses the calling python, which has torch, triton, transformers and pytest. Runs all operator and
integration tests on the GPU (CUDA graphs and the search for hidden synchronisation among them),
then the benchmarks; goes on after a step that fails, and ends with a summary and status 1 if any
did.
Results, logs and a table go to bench/results/<device>, or to ``--out``: at most eight files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.gpu_steps import NOT_RUN, Result, Step, last_json, run_step, write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
LOGS = ROOT / "build" / "gpu-check"
MEASURED = LOGS / "bench"  # what the benchmarks write
LIBRARY = ROOT / "erase_kernels" / "_C.abi3.so"
TOTAL_S = 525.0  # the promise is nine minutes; ending a step and writing take some seconds
SPARE_CORES = 2  # not used by test workers
MOST_WORKERS = 14  # each holds a CUDA context
STUCK_S = 90  # after which a test's stack is printed
MAX_FILES = 8  # under --out
WRITTEN = 3  # of them, beside the benchmarks' results
MAX_FAILURES = 15  # tests named per step in the summary
MAX_LINE = 160  # characters
MAX_TAIL = 1800  # characters of a failed step's log in the summary

NAMES = ("facts", "native", "operators", "integration", "benchmarks")
QUICK = ("facts", "operators", "integration", "benchmarks")
NEED_NO_GPU = ("facts", "native")


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, in order."""
    python = sys.executable
    tests = {
        "ERASE_KERNELS_TEST_DEVICE": "cuda",
        "TRITON_INTERPRET": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    pytest = [python, "-m", "pytest", "-v", "--tb=short", "--durations=10"]
    pytest += ["-p", "no:cacheprovider", "-o", f"faulthandler_timeout={STUCK_S}"]
    if importlib.util.find_spec("xdist"):
        workers = max(min((os.cpu_count() or 1) - SPARE_CORES, MOST_WORKERS), 1)
        pytest += ["-n", str(workers)]
    if arguments.quick:
        pytest += ["--maxfail=5"]
    bench = [python, "-m", "bench", "--device", "cuda", "--budget", "{seconds}"]
    bench += ["--out", str(MEASURED.relative_to(ROOT))]
    if arguments.quick:
        bench += ["--quick"]
    if arguments.revision:
        bench += ["--revision", arguments.revision]
    build = (python, "setup.py", "--quiet", "build_ext", "--inplace")
    steps = [
        Step("facts", "machine and versions", (python, "-m", "tools.gpu_facts"), 60),
        Step("native", "native library", build, 90),
        Step("operators", "operator tests", (*pytest, "tests/device"), 200, tests, tests=True),
        Step("integration", "integration tests", (*pytest, "tests/hf"), 150, tests, tests=True),
        Step("benchmarks", "benchmarks", tuple(bench), 240),
    ]
    wanted = arguments.only or (QUICK if arguments.quick else NAMES)
    return [step for step in steps if step.name in ("facts", *wanted)]


def native_is_current() -> bool:
    """Whether the library beside the sources was built from them."""
    if not LIBRARY.exists():
        return False
    module = runpy.run_path(str(ROOT / "erase_kernels" / "_source_hash.py"))
    return bool(module["embedded_hash"](LIBRARY) == module["source_hash"](ROOT))


def run_all(
    steps: Sequence[Step],
    logs: Path,
    after: Callable[[list[Result]], None],
    total_s: float = TOTAL_S,
) -> list[Result]:
    """Every step, whatever became of the ones before it; without a GPU those that need none.

    ``after`` gets the results so far, after each step.
    """
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    start, no_gpu = time.monotonic(), ""
    results: list[Result] = []
    for step in steps:
        remaining = total_s - (time.monotonic() - start)
        if step.name == "native" and native_is_current():
            result = Result(step, note="the library is up to date")
        elif no_gpu and step.name not in NEED_NO_GPU:
            result = Result(step, note=no_gpu)
        else:
            print(f"== {step.name}: {step.what} (at most {min(step.limit_s, remaining):.0f} s)")
            sys.stdout.flush()
            result = run_step(step, logs, ROOT, remaining)
            print(f"   {result.status} in {result.seconds:.0f} s {_counts(result)}", flush=True)
        if step.name == "facts" and not last_json(result.tail).get("device"):
            no_gpu = "no CUDA device was found"
        results.append(result)
        after(results)
    return results


def facts_of(results: Sequence[Result]) -> dict[str, Any]:
    """What the first step printed."""
    return last_json(results[0].tail) if results else {}


def passed(results: Sequence[Result]) -> bool:
    """Nothing failed, and what did not run had no need to."""
    return all(not r.bad and (r.status != NOT_RUN or r.step.name == "native") for r in results)


# --- output --------------------------------------------------------------------------------------


def _counts(result: Result) -> str:
    return ", ".join(f"{number} {word}" for word, number in result.counts.items())


def failures(result: Result, log: str) -> list[str]:
    """Tests that a pytest log names as failed, or the end of any other failed step's log."""
    if not result.bad:
        return []
    lines = re.findall(r"^(?:FAILED|ERROR) .*$", log, re.MULTILINE)
    more = len(lines) - MAX_FAILURES
    named = [line[:MAX_LINE] for line in lines[:MAX_FAILURES]]
    named += [f"... and {more} more"] if more > 0 else []
    return named or result.tail[-MAX_TAIL:].splitlines()


def summary(results: Sequence[Result], logs: Path) -> str:
    """What to read first; short enough for the last screen of a log."""
    lines = []
    for result in results:
        log = logs / f"{result.step.name}.log"
        found = failures(result, log.read_text(errors="replace") if log.exists() else "")
        if found:
            lines += [f"\n--- {result.step.name}: {result.status} {result.note}", *found]
    facts = facts_of(results)
    lines += ["", ", ".join(f"{key} {value}" for key, value in facts.items())]
    for result in results:
        state = f"{result.step.name:<12} {result.status:<10} {result.seconds:6.1f} s"
        lines.append("  ".join(filter(None, [state, _counts(result), result.note])))
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
    return "\n".join([*rows, ""])


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

    results = run_all(steps, LOGS, after, arguments.limit)
    copy_results(MEASURED, folder(results))
    print(summary(results, LOGS))
    print(f"wrote {folder(results)}")
    return 0 if passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
