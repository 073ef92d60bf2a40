"""Applies each committed mutant to a copy of the sources and demands that its tests notice.

A mutant is a unified diff under tests/mutants with a header:

    What it breaks, in a sentence or two.
    Caught by: tests/test_x.py::test_a tests/test_y.py::test_b
    ---
    --- a/erase_kernels/...

Usage: python tests/mutants/run.py [--list] [NAME ...]   (names without .patch; default: all)

Tests run in processes forked from this one, which has imported torch and transformers but none of
the packages under test. The named tests first run unchanged and must pass; then each mutant is
applied, the native library rebuilt if it touches native sources, and the named tests run: one must
fail, or the process crash. CUDA kernels are compiled by the tests that load them, for the emulator.
A diff that does not apply, a test that does not exist and a mutant that survives are errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT_S = 300  # of one mutant's tests
POLL_S = 0.02
INTERNAL_ERROR = 3  # pytest's own status for it
NATIVE_COST = 2  # a native mutant is rebuilt: about this many times the time of another
PRELOADED = (
    "hypothesis",
    "matplotlib",
    "numpy",
    "torch",
    "transformers",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.pipelines",
    "triton",
    "triton.runtime.interpreter",
)
CATCHER = re.compile(r"^Caught by:\s*(.+)$", re.MULTILINE)
TOUCHED = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
NATIVE = re.compile(r"CMakeLists\.txt|csrc/(?!cuda/)")  # what the native library is built from
EMULATED = Path("build", "emulated")  # objects of the CUDA kernels


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One patch file."""

    path: Path
    tests: tuple[str, ...]
    native: bool

    @property
    def name(self) -> str:
        return self.path.stem


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a mutant; ``problem`` is empty if it was caught."""

    name: str
    problem: str
    seconds: float
    output: str = ""


class Failure(Exception):
    """A step that had to succeed did not; carries its output."""


def read_mutant(path: Path) -> Mutant:
    text = path.read_text()
    header, _, diff = text.partition("\n--- a/")
    tests = tuple(test for line in CATCHER.findall(header) for test in line.split())
    touched = TOUCHED.findall(diff)
    if not tests or not touched:
        raise SystemExit(f"{path.name}: needs a 'Caught by:' line and a diff with a/ and b/ paths")
    return Mutant(path, tests, any(map(NATIVE.match, touched)))


def copy_tree(target: Path) -> None:
    """Copies what git knows or would add, and the built library; links the emulated objects."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, [*names, b"erase_kernels/_C.abi3.so"]):
        source = ROOT / os.fsdecode(name)
        if not source.is_file():
            continue  # deleted, not yet committed
        copy = target / os.fsdecode(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
    (target / EMULATED).mkdir(parents=True)  # what mutants add stays there
    for path in (ROOT / EMULATED).glob("*.*o"):
        (target / EMULATED / path.name).symlink_to(path)


def environment(tree: Path) -> dict[str, str]:
    """Tests in ``tree`` import its packages, not the installed ones."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "ERASE_KERNELS_NATIVE": "1",
        "ERASE_KERNELS_EMULATED_CACHE": str(tree / EMULATED),
    }


def step(tree: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")


def build(tree: Path) -> None:
    step(tree, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")


def preload() -> None:
    """Imports what takes long and no mutant changes; every test process is forked from here."""
    for name in PRELOADED:
        importlib.import_module(name)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit status (negative: killed by that signal) and output of pytest in a forked process."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            _pytest_in_child(tree, tests, output.fileno())
        status = _wait(child)
        output.seek(0)
        return status, output.read()


def _pytest_in_child(tree: Path, tests: tuple[str, ...], output: int) -> NoReturn:
    status = INTERNAL_ERROR
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        os.environ.update(environment(tree))
        sys.path.insert(0, str(tree))
        options = ["-q", "-x", "-p", "no:cacheprovider", "--show-capture=no", "--tb=line"]
        status = int(pytest.main([*options, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)  # none of the parent's clean-up belongs to this process


def _wait(child: int) -> int:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Failure(f"the tests took more than {TIMEOUT_S} s")


def judge(status: int) -> str:
    """pytest's exit status, read strictly: 1 is a failed test, a negative one a crash."""
    if status == 0:
        return "survived"
    return "" if status == 1 or status < 0 else f"pytest ended with status {status}"


def try_mutant(tree: Path, mutant: Mutant) -> Verdict:
    start = time.monotonic()
    problem, output = "", ""
    try:
        step(tree, "git", "apply", str(mutant.path))
        try:
            if mutant.native:
                build(tree)
            status, output = run_tests(tree, mutant.tests)
            problem = judge(status)
        finally:
            step(tree, "git", "apply", "--reverse", str(mutant.path))
    except Failure as failure:
        problem, output = "error", str(failure)
    return Verdict(mutant.name, problem, time.monotonic() - start, output)


def report(verdicts: list[Verdict], path: Path) -> None:
    """Hands a worker's verdicts to the main process."""
    path.write_text(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts]))


def work(tree: Path, mutants: list[Mutant], result: Path) -> None:
    """One worker: its tests first without a mutant, then with one after the other."""
    verdicts: list[Verdict] = []
    copy_tree(tree)
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    start = time.monotonic()
    status, output = run_tests(tree, tests) if tests else (0, "")
    if status:
        problem = f"its tests end with status {status} without any mutant"
        verdicts.append(Verdict("(none)", problem, time.monotonic() - start, output))
        mutants = []
    unchanged = True  # the library of this copy
    for mutant in mutants:
        if not unchanged and not mutant.native:
            build(tree)
        unchanged = not mutant.native
        verdict = try_mutant(tree, mutant)
        verdicts.append(verdict)
        state = verdict.problem.upper() or "caught"
        print(f"{state:<10} {mutant.name}  ({verdict.seconds:.1f} s)", flush=True)
    report(verdicts, result)


def divide(mutants: list[Mutant]) -> list[list[Mutant]]:
    """Two shares of about the same time; native mutants together, so that one copy is built."""
    ordered = sorted(mutants, key=lambda m: (not m.native, m.tests))
    cost = [NATIVE_COST if mutant.native else 1 for mutant in ordered]
    cut = next((i for i in range(len(cost)) if sum(cost[:i]) >= sum(cost) / 2), len(cost))
    return [share for share in (ordered[:cut], ordered[cut:]) if share]


def try_all(mutants: list[Mutant], scratch: Path) -> list[Verdict]:
    """Runs both shares at the same time, in forked workers."""
    children = {}
    for number, share in enumerate(divide(mutants)):
        result = scratch / f"{number}.json"
        child = os.fork()
        if child == 0:
            try:
                work(scratch / str(number), share, result)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children[child] = result
    verdicts = []
    for child, result in children.items():
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status):
            verdicts.append(Verdict("(worker)", "a worker failed", 0.0))
        else:
            verdicts += [Verdict(**entry) for entry in json.loads(result.read_text())]
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants to try; default: all")
    parser.add_argument("--list", action="store_true", help="print names and tests only")
    arguments = parser.parse_args()
    mutants = [read_mutant(path) for path in sorted(HERE.glob("*.patch"))]
    unknown = set(arguments.names) - {mutant.name for mutant in mutants}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [m for m in mutants if not arguments.names or m.name in arguments.names]
    if arguments.list:
        for mutant in mutants:
            print(mutant.name, *mutant.tests)
        return 0
    start = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is, which its kernels' tests run in
    preload()
    if any("tests/device/" in test or "tests/emu/" in test for m in mutants for test in m.tests):
        step(ROOT, sys.executable, "-m", "tests.emu.build", "0", "1", "races")
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        verdicts = try_all(mutants, Path(scratch))
    bad = [verdict for verdict in verdicts if verdict.problem]
    for verdict in bad:
        print(f"\n--- {verdict.name}: {verdict.problem}\n{verdict.output}")
    caught = len(verdicts) - len(bad)
    print(f"{caught} of {len(mutants)} mutants caught in {time.monotonic() - start:.0f} s")
    return 0 if mutants and caught == len(mutants) and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
