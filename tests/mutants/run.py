"""Applies each committed mutant to a copy of the sources and demands that its tests notice.

A mutant is a unified diff under tests/mutants with a header:

    What it breaks, in a sentence or two.
    Caught by: tests/test_x.py::test_a tests/test_y.py::test_b
    ---
    --- a/erase_kernels/...

Usage: python tests/mutants/run.py [--list] [NAME ...]   (names without .patch; default: all)

The named tests first run unchanged and must pass; then each mutant is applied, the native library
rebuilt if it touches native sources, and the named tests run: one must fail, or the process crash.
A diff that does not apply, a test that does not exist and a mutant that survives are errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT_S = 300  # of one mutant's tests
CATCHER = re.compile(r"^Caught by:\s*(.+)$", re.MULTILINE)
TOUCHED = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
NATIVE = ("csrc/", "CMakeLists.txt")


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

    mutant: Mutant
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
    return Mutant(path, tests, any(name.startswith(NATIVE) for name in touched))


def copy_tree(target: Path) -> None:
    """Copies what git knows or would add, and the built library."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    library = b"erase_kernels/_C.abi3.so"
    for name in filter(None, [*names, library]):
        source = ROOT / os.fsdecode(name)
        if not source.is_file():
            continue  # deleted, not yet committed
        copy = target / os.fsdecode(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)


def environment(tree: Path) -> dict[str, str]:
    """Tests in ``tree`` import its packages, not the installed ones."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "ERASE_KERNELS_NATIVE": "1",
    }


def step(tree: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")


def build(tree: Path) -> None:
    step(tree, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")


def run_tests(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["--show-capture=no", "--tb=line", *tests]
    return subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=TIMEOUT_S
    )


def judge(returncode: int) -> str:
    """pytest's exit status, read strictly: 1 is a failed test, a negative one a crash."""
    if returncode == 0:
        return "survived"
    return "" if returncode == 1 or returncode < 0 else f"pytest ended with status {returncode}"


def try_mutant(tree: Path, mutant: Mutant) -> Verdict:
    start = time.monotonic()
    try:
        step(tree, "git", "apply", str(mutant.path))
    except Failure as failure:
        return Verdict(mutant, "does not apply", time.monotonic() - start, str(failure))
    try:
        if mutant.native:
            build(tree)
        done = run_tests(tree, mutant.tests)
        problem, output = judge(done.returncode), done.stdout + done.stderr
    except Failure as failure:
        problem, output = "does not build", str(failure)
    except subprocess.TimeoutExpired:
        problem, output = f"its tests took more than {TIMEOUT_S} s", ""
    finally:
        step(tree, "git", "apply", "--reverse", str(mutant.path))
    return Verdict(mutant, problem, time.monotonic() - start, output)


def work(
    tree: Path, queues: list[queue.SimpleQueue[Mutant]], verdicts: list[Verdict], errors: list[str]
) -> None:
    """Tries mutants until the queues are empty; the first queue goes first."""
    try:
        for waiting in queues:
            rebuilt = False
            while True:
                try:
                    mutant = waiting.get_nowait()
                except queue.Empty:
                    break
                verdict = try_mutant(tree, mutant)
                rebuilt |= mutant.native
                verdicts.append(verdict)
                state = verdict.problem.upper() or "caught"
                print(f"{state:<10} {mutant.name}  ({verdict.seconds:.1f} s)", flush=True)
            if rebuilt:
                build(tree)  # later mutants need the unchanged library
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")


def try_all(mutants: list[Mutant], trees: tuple[Path, Path]) -> tuple[list[Verdict], list[str]]:
    """Two workers: one begins with the native mutants, so that only its copy is ever built."""
    native: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    python: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        (native if mutant.native else python).put(mutant)
    verdicts: list[Verdict] = []
    errors: list[str] = []
    plans = ((trees[0], [native, python]), (trees[1], [python]))
    threads = [threading.Thread(target=work, args=(*plan, verdicts, errors)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts, errors


def check_unchanged(tree: Path, mutants: list[Mutant]) -> None:
    """The named tests exist, and pass without any mutant."""
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nthe named tests fail without any mutant")


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
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = (Path(scratch) / "first", Path(scratch) / "second")
        for tree in trees:
            copy_tree(tree)
        check_unchanged(trees[1], mutants)
        verdicts, errors = try_all(mutants, trees)
    bad = [verdict for verdict in verdicts if verdict.problem]
    for verdict in bad:
        print(f"\n--- {verdict.mutant.name}: {verdict.problem}\n{verdict.output}")
    for error in errors:
        print(f"\n--- {error}")
    caught = len(verdicts) - len(bad)
    print(f"{caught} of {len(mutants)} mutants caught in {time.monotonic() - start:.0f} s")
    return 0 if mutants and caught == len(mutants) and not errors else 1


if __name__ == "__main__":
    sys.exit(main())
