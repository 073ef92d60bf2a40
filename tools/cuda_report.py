"""What nvcc makes of every CUDA kernel, on every architecture, found out without a GPU.

    python -m tools.cuda_report [--architecture 80 ...] [--markdown FILE] [--binary FILE ...]

Builds the native library with its CUDA kernels, as CMakeLists.txt says, under build/ (the one
beside the sources stays), and prints registers, shared memory and the instruction mix of the
machine code in it. Fails on a spill, a stack frame, more static shared memory than the architecture
has, a fused multiply-add on the luma path (kernels of patch_entropy*), a kernel that bears no
operator's name, an operator without a kernel, and an architecture without any. Needs nvcc 13.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from tools.native_library import ROOT, built_with

BUILD = ROOT / "build" / "cuda"  # what setup.py puts the library into
LIBRARY = BUILD / "erase_kernels" / "_C.abi3.so"
LUMA = "patch_entropy"  # names of kernels that must keep to the reference's roundings begin so
RESERVED = 1024  # bytes of shared memory that cuobjdump counts with a kernel's own, from sm_90 on
HAVE_CALLS = {"CALL": ("call",), **COLUMNS}  # heading -> instruction counts
NVCC_HINT = (
    "nvcc 13 is required: install NVIDIA's CUDA toolkit 13, or from PyPI nvidia-cuda-nvcc, "
    "nvidia-cuda-crt, nvidia-nvvm and nvidia-cuda-runtime (all 13.*), and set CUDACXX to its nvcc"
)

ELF = "Fatbin elf code:"  # precedes the code of each architecture in each object file
ARCHITECTURE = re.compile(r"^arch = sm_(\d+)")
USAGE_OF = re.compile(r"^\s*Function (\S+):$")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
CODE_OF = re.compile(r"^\s*Function : (\S+)$")

Place = tuple[int, str]  # number of the ELF file, mangled name


def build() -> str:
    """Builds `LIBRARY`; why that failed, empty if it did not."""
    left_out = {"ERASE_KERNELS_CUDA_ARCHITECTURES"}  # all of CMakeLists.txt's are reported on
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = {**kept, "ERASE_KERNELS_NATIVE": "1", "ERASE_KERNELS_CUDA": "1"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(BUILD)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 0:
        return ""
    lines = done.stdout.strip().splitlines()
    errors = [line for line in lines if re.search(r"\berror\b|CMake Error", line)]
    return "\n".join([*errors[:20], *lines[-12:]]) or f"setup.py ended with {done.returncode}"


# --- reading machine code ------------------------------------------------------------------------


def find_cuobjdump() -> str:
    """NVIDIA's disassembler, which triton's package brings.

    Raises:
        RuntimeError: there is none.
    """
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    found = shutil.which("cuobjdump")
    if found is None:
        raise RuntimeError("no cuobjdump: neither in triton's package nor on PATH")
    return found


def _dump(option: str, binary: Path) -> str:
    done = subprocess.run([find_cuobjdump(), option, binary], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option} {binary.name} failed: {done.stderr.strip()}")
    return done.stdout


def _lines(listing: str) -> Iterator[tuple[int, int, str]]:
    """Number of the ELF file, its architecture, and a line of it."""
    number, architecture = 0, 0
    for line in listing.splitlines():
        number += line == ELF
        if match := ARCHITECTURE.match(line):
            architecture = int(match[1])
        yield number, architecture, line


def parse_usage(listing: str) -> dict[Place, dict[str, int]]:
    """Architecture, registers, stack and shared memory, from ``cuobjdump -res-usage``."""
    found: dict[Place, dict[str, int]] = {}
    name = ""
    for number, architecture, line in _lines(listing):
        if match := USAGE_OF.match(line):
            name = match[1]
        elif name and (match := USAGE.search(line)):
            registers, stack, shared = map(int, match.groups())
            if architecture >= sass.SUFFIXED:
                shared = max(shared - RESERVED, 0)
            found[number, name] = {
                "architecture": architecture,
                "registers": registers,
                "stack": stack,
                "shared": shared,
            }
            name = ""
    return found


def parse_code(listing: str) -> dict[Place, dict[str, int]]:
    """Instruction counts, from ``cuobjdump -sass``."""
    names: dict[Place, list[str]] = {}
    current: list[str] = []
    for number, _, line in _lines(listing):
        if match := CODE_OF.match(line):
            current = names.setdefault((number, match[1]), [])
        else:
            current += [name for _, name in sass.parse(line)]
    return {place: sass.count(each) for place, each in names.items()}


def demangle(names: Sequence[str]) -> list[str]:
    """Readable names, where c++filt is there."""
    if shutil.which("c++filt") is None or not names:
        return list(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return lines if len(lines) == len(names) else list(names)


def short(name: str) -> str:
    """A demangled name without return type, namespaces and parameters."""
    text = name.replace("(anonymous namespace)::", "").replace("erase_kernels::", "")
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == "(":
            return text[start:place]
        if depth == 0 and letter in " :":
            start = place + 1
    return text[start:]


def inspect(binary: Path) -> list[dict[str, Any]]:
    """Facts of every kernel in an object file or a library, each different one once.

    Raises:
        RuntimeError: the file cannot be read.
    """
    usage, code = parse_usage(_dump("-res-usage", binary)), parse_code(_dump("-sass", binary))
    readable = demangle([name for _, name in usage])
    kernels: list[dict[str, Any]] = []
    for place, full in zip(usage, readable, strict=True):
        name = short(full)
        kernel = {"name": name, **usage[place], "luma": name.startswith(LUMA)}
        kernel |= {"mix": code[place]} if place in code else {"error": "no machine code"}
        if kernel not in kernels:  # a template may be instantiated in several files
            kernels.append(kernel)
    return sorted(kernels, key=lambda kernel: (kernel["architecture"], kernel["name"]))


# --- judging -------------------------------------------------------------------------------------


def uncovered(kernels: Iterable[Mapping[str, Any]]) -> list[str]:
    """Operators without a kernel; operators of one source file may share kernels."""
    covered = {TRITON_OPERATORS.get(operator_of(kernel["name"])) for kernel in kernels}
    return [operator for operator, source in TRITON_OPERATORS.items() if source not in covered]


def problems(kernels: Sequence[Mapping[str, Any]], architecture: int, operators: bool) -> list[str]:
    """Everything that fails the report for one architecture, a line each."""
    title = f"sm_{architecture}"
    if not kernels:
        return [f"{title}: no kernel at all"]
    found = []
    for kernel in kernels:
        wrong = faults(kernel, architecture)
        if operators and not operator_of(kernel["name"]):
            wrong.append("the name begins with no operator's")
        found += [f"{title}: {kernel['name']}: {fault}" for fault in wrong]
    if operators:
        found += [f"{title}: no kernel of {operator}" for operator in uncovered(kernels)]
    return found


def table(kernels: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Heading and one row per kernel."""
    rows = [["kernel", "regs", "stack", "static smem", "spill", *HAVE_CALLS]]
    for kernel in kernels:
        name = kernel["name"] + (" (luma)" if kernel["luma"] else "")
        if "mix" not in kernel:
            rows.append([name, "failed", *[""] * (len(rows[0]) - 2)])
            continue
        numbers = [str(kernel[key]) for key in ("registers", "stack", "shared")]
        mix = kernel["mix"]
        rows.append([name, *numbers, str(mix["local"]), *mix_cells(mix, HAVE_CALLS)])
    return rows


def markdown(tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    parts = ["# What nvcc makes of the kernels\n", "Written by `make gpu-report`, without a GPU.\n"]
    for title, rows in tables.items():
        parts += [f"## {title}\n", *markdown_table(rows), ""]
    return "\n".join(parts)


def report(binaries: Sequence[Path], wanted: Sequence[int], operators: bool) -> tuple[
    dict[str, list[list[str]]], list[str]
]:  # fmt: skip
    """Title -> table of each architecture, and everything that fails."""
    kernels = [kernel for binary in binaries for kernel in inspect(binary)]
    version = built_with(binaries[0])[0] or "?"
    architectures = wanted or sorted({kernel["architecture"] for kernel in kernels})
    tables: dict[str, list[list[str]]] = {}
    found = [] if kernels else ["no kernel at all"]
    for architecture in architectures:
        chosen = [kernel for kernel in kernels if kernel["architecture"] == architecture]
        found += problems(chosen, architecture, operators)
        if chosen:
            tables[f"sm_{architecture}, nvcc {version}, {len(chosen)} kernels"] = table(chosen)
    return tables, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", choices=SHARED_KIB)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument(
        "--binary", type=Path, nargs="+", help="object files or libraries, instead of building"
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    if not arguments.binary and (broken := build()):
        print(f"FAILED the library was not built:\n{broken}")
        if "nvcc" in broken:
            print(NVCC_HINT)
        return 1
    built = time.monotonic() - start
    default = [] if arguments.binary else list(SHARED_KIB)
    try:
        tables, found = report(
            arguments.binary or [LIBRARY],
            arguments.architecture or default,
            operators=not arguments.binary,
        )
    except (OSError, RuntimeError) as error:
        tables, found = {}, [str(error)]
    for title, rows in tables.items():
        print("\n".join([f"\n{title}", *text_table(rows)]))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(tables))
    seconds = time.monotonic() - start
    print(f"\nbuilt in {built:.0f} s, all in {seconds:.0f} s, {len(found)} problems")
    for problem in found:
        print(f"FAILED {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
