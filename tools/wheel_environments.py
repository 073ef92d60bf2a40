"""Clean environments that a wheel is installed into, and what it must do there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tools import wheel_library
from tools.wheel_files import LIBRARY
from tools.wheel_run import Failed, clean_environ, run, say

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tools" / "wheel_probe.py"
ROOM_GB = 10  # for an environment with a CUDA torch, and its download
TESTS = [  # of the operators; they need nothing but tests/ and the installed package
    "test_compact_kv",
    "test_compact_kv_paged",
    "test_compact_rows",
    "test_complexity_plan",
    "test_luma",
    "test_patch_entropy",
    "test_patch_entropy_from_pixels",
    "test_pixel_layout",
    "test_pixel_refusals",
    "test_segmented_topk",
    "test_status",
    "test_text_to_vision_scores",
]
TOOLS = ("pytest", "hypothesis", "setuptools")  # for those tests; the last for torch.compile
# In the folder the tests run in: they must not test anything but the wheel.
CONFTEST = """import sys, erase_kernels
assert erase_kernels.__file__.startswith(sys.prefix), erase_kernels.__file__
"""


@dataclasses.dataclass(frozen=True)
class Environment:
    """A torch that the wheel must work with."""

    torch: str  # version, from a package index
    cuda: str  # how torch.version.cuda starts; empty for a CPU build
    refusal: str  # of CUDA tensors, by the native backend; empty if it takes them


def pinned(package: str) -> str:
    """Version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    if not found:
        raise Failed(f"constraints.txt has no {package}")
    return found[1]


ENVIRONMENTS = {
    "cpu": Environment(pinned("torch"), "", "this torch was built without CUDA"),
    "cuda": Environment("2.11.0", "13.", ""),  # the oldest torch for CUDA 13
    "2.10": Environment(  # the oldest torch; its wheel on the package index is for CUDA 12
        "2.10.0", "12.", "its kernels need CUDA 13, and this torch was built with 12"
    ),
}


def constraints(folder: Path) -> Path:
    """The development versions without torch and what comes with it."""
    lines = [
        line
        for name in ("constraints.txt", "constraints-dev.txt")
        for line in (ROOT / name).read_text().splitlines()
        if not re.match(r"(torch|triton|nvidia-[\w-]+)==", line)
    ]
    path = folder / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_environment(name: str, wanted: Environment, folder: Path) -> Path:
    """Python of a virtual environment that has the torch and nothing else of the project."""
    place = folder / f"torch-{wanted.torch}-{name}"
    python, ready = place / "bin" / "python", place / "ready"
    if ready.exists() and ready.read_text() == sys.version:
        return python
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if wanted.cuda and free < ROOM_GB:
        raise Failed(f"{free:.0f} GB are free in {folder}; torch with CUDA needs {ROOM_GB}")
    say(f"{name}: installing torch {wanted.torch}")
    run([sys.executable, "-m", "venv", "--without-pip", place], "no virtual environment")
    hint = f"the check needs torch {wanted.torch}; --only and another name leave this part out"
    install(python, [f"torch=={wanted.torch}"], f"torch cannot be installed: {hint}")
    ready.write_text(sys.version)
    return python


def install(python: Path, what: list[Any], problem: str) -> None:
    """pip install for another environment's Python."""
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet"]
    run([*pip, "install", *what], problem, cwd=python.parent)


def check_environment(name: str, wanted: Environment, wheel: Path, folder: Path) -> None:
    """Installs the wheel beside a torch, imports it from a temporary directory and tests it."""
    python = make_environment(name, wanted, folder)
    with tempfile.TemporaryDirectory() as temporary:
        away = Path(temporary)
        install(python, ["--force-reinstall", "--no-deps", wheel], "the wheel does not install")
        needs = [wheel, *TOOLS, f"torch=={wanted.torch}", "-c", constraints(away)]
        install(python, needs, "what the wheel depends on does not install")
        probe = [f"{symbol}={offset}" for symbol, offset in cuda_slots(wheel, away).items()]
        copy = shutil.copy(PROBE, away)
        output = run([python, "-I", copy, *probe], f"{name}: import fails", cwd=away)
        report = json.loads(output.splitlines()[-1])
        found = report_faults(report, wanted, python.parent.parent)
        if found:
            lines = "\n".join(f"  {fault}" for fault in found)
            raise Failed(f"{name}: torch {wanted.torch}:\n{lines}\n{report['printed']}")
        found_torch = report["info"]["versions"]["torch"]
        say(f"{name}: torch {found_torch}: imported, {len(report['registered'])} operators")
        say(f"{name}: {run_tests(python, away / 'tests-only')}")


def cuda_slots(wheel: Path, folder: Path) -> dict[str, int]:
    """Functions of torch's CUDA half that the library uses, and where it keeps their addresses."""
    with zipfile.ZipFile(wheel) as archive:
        slots = wheel_library.read_library(Path(archive.extract(LIBRARY, folder))).slots
    return {symbol: slots[symbol] for symbol in slots if wheel_library.is_cuda(symbol)}


def report_faults(report: dict[str, Any], wanted: Environment, place: Path) -> list[str]:
    """What is wrong with the probe's report."""
    found, info = [], report["info"]
    if not report["file"].startswith(str(place)):
        found.append(f"erase_kernels came from {report['file']}")
    found += [f"{path} is importable" for path in report["path"] if path == str(ROOT)]
    if not report["cuda"].startswith(wanted.cuda) or bool(report["cuda"]) != bool(wanted.cuda):
        kind = wanted.cuda or "none: set PIP_FIND_LINKS to a folder with a CPU wheel of torch"
        found.append(f"torch has CUDA {report['cuda'] or 'none'}, wanted {kind}")
    if info["native"] != "available" or info["cpu"] != "native":
        found.append(f"native library: {info['native']}; CPU tensors: {info['cpu']}")
    refusal = report["refusal"]
    if wanted.refusal not in refusal or bool(refusal) != bool(wanted.refusal):
        found.append(f"CUDA tensors: {refusal or 'taken'}; wanted: {wanted.refusal or 'taken'}")
    for operator, keys in report["registered"].items():
        if keys != ["CPU", "CUDA"]:
            found.append(f"{operator}_native has kernels for {keys or 'nothing'}")
    if not report["registered"] or not report["filled"]:
        found.append("there are no operators or no functions of torch's CUDA half to look at")
    for symbol, there in report["filled"].items():
        if there != bool(wanted.cuda):
            found.append(f"{symbol} was {'found' if there else 'not found'} by the loader")
    return found


def run_tests(python: Path, folder: Path) -> str:
    """Runs the operators' CPU tests on a copy of tests/; pytest's last line."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conftest.py").write_text(CONFTEST)
    files = [f"tests/{name}.py" for name in TESTS]
    output = run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        "tests of the installed wheel fail",
        cwd=folder,
        env=clean_environ(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
    )
    return output.strip().splitlines()[-1]
