"""Compiles the emulated library; objects are kept by the contents of what they are made of.

    python -m tests.emu.build [KIND ...]     prints the libraries' paths

ERASE_KERNELS_EMULATED_SANITIZE=1 asks for AddressSanitizer and UndefinedBehaviorSanitizer; the
process that loads such a library needs `sanitized_environment`. With ...=races, launches in which
threads race with each other throw.
ERASE_KERNELS_EMULATED_CACHE names another folder for objects than build/emulated.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
CUDA = ROOT / "csrc" / "cuda"
SANITIZE_SWITCH = "ERASE_KERNELS_EMULATED_SANITIZE"
CACHE_SWITCH = "ERASE_KERNELS_EMULATED_CACHE"
JOBS = 2
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)

FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # nvcc does not assume it either
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # unroll
    "-Wno-unused-function",  # small functions of headers
    "-fno-gnu-unique",  # two such libraries in one process share nothing
    "-DERASE_KERNELS_EMULATOR",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
PLAIN = ("-O2",)
# float-cast-overflow: what no integer holds becomes something else here than on a GPU.
SANITIZED = (
    "-O1",
    "-g1",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=shift-base",  # of negative numbers: defined in C++20, and by every compiler
    "-fno-sanitize-recover=all",
)
# The compiler calls races.cpp before every access of the kernels, not its own library for it.
RACES = ("-O1", "-g1", "-DERASE_EMULATED_RACES")
WATCHED = "-fsanitize=thread"
KINDS = {"0": PLAIN, "1": SANITIZED, "races": RACES}  # values of SANITIZE_SWITCH
KEPT_FILES = 300  # of the cache; a set of objects and its library are a few dozen


def torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    return Path(spec.origin).parent


def compiler() -> str:
    found = os.environ.get("CXX", "").split() or [shutil.which("g++") or "c++"]
    return found[0]


def sources() -> list[Path]:
    """The operators' launchers with their kernels, and the emulator."""
    return [*sorted(CUDA.glob("*.cu")), CUDA / "status.cpp", *sorted(HERE.glob("*.cpp"))]


def probe_sources() -> list[Path]:
    """Kernels for the tests of the emulator itself, and the emulator; nothing of torch."""
    emulator = [path for path in sorted(HERE.glob("*.cpp")) if path.name != "registration.cpp"]
    return [*sorted((HERE / "probes").glob("*.cpp")), *emulator]


def includes(path: Path, seen: set[Path]) -> None:
    """Adds ``path`` and the project's files it includes, directly or not, to ``seen``."""
    if path in seen:
        return
    seen.add(path)
    for name in INCLUDE.findall(path.read_text()):
        for folder in (path.parent, ROOT / "csrc", HERE):
            if (folder / name).is_file():
                includes((folder / name).resolve(), seen)
                break


def fingerprint(path: Path, command: list[str]) -> str:
    seen: set[Path] = set()
    includes(path, seen)
    digest = hashlib.sha256("\0".join([*command, *versions(command[0])]).encode())
    for file in sorted(seen):
        digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def versions(compiler: str) -> tuple[str, str]:
    """Of the compiler and of torch, whose headers are compiled in."""
    asked = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True)
    return asked.stdout.strip(), (torch_root() / "version.py").read_text()


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def compile_object(source: Path, folder: Path, flags: tuple[str, ...]) -> Path:
    torch = torch_root()
    if flags == RACES and (source.suffix == ".cu" or source.parent.name == "probes"):
        flags = (*flags, WATCHED)
    command = [compiler(), *FLAGS, *flags, "-isystem", str(torch / "include")]
    target = folder / f"{source.stem}-{fingerprint(source, command)}.o"
    if target.exists():
        return target
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command += [f"-ffile-prefix-map={ROOT}/=", "-I", str(ROOT / "csrc"), "-I", str(HERE)]
    run([*command, "-x", "c++", "-c", str(source), "-o", str(partial)])
    partial.replace(target)
    return target


def link(name: str, objects: list[Path], folder: Path, flags: tuple[str, ...]) -> Path:
    digest = hashlib.sha256("\0".join(path.name for path in objects).encode()).hexdigest()[:16]
    target = folder / f"lib{name}-{digest}.so"
    if target.exists():
        return target
    partial = target.with_suffix(f".{os.getpid()}.partial")
    whole = () if flags == SANITIZED else ("-Wl,-z,defs",)  # libasan comes with the process
    command = [compiler(), "-shared", *flags, *whole, *map(str, objects), "-o", str(partial)]
    run([*command, f"-L{torch_root() / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"])
    partial.replace(target)
    return target


def forget_old(folder: Path, used: list[Path]) -> None:
    """Keeps the cache from growing for ever; files in use come last."""
    for path in used:
        os.utime(path)
    files = [path for path in folder.iterdir() if path.suffix in (".o", ".so")]
    files.sort(key=lambda path: path.lstat().st_mtime)
    for path in files[:-KEPT_FILES]:
        path.unlink()


def cache() -> Path:
    return Path(os.environ.get(CACHE_SWITCH, ROOT / "build" / "emulated"))


def build(name: str, parts: list[Path], kind: str | None) -> Path:
    """A library of those sources, built if need be; two processes may ask at once."""
    flags = KINDS[os.environ.get(SANITIZE_SWITCH, "0") if kind is None else kind]
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(lambda s: compile_object(s, folder, flags), parts))
        target = link(name, objects, folder, flags)
        forget_old(folder, [*objects, target])
    return target


def sanitized_environment() -> dict[str, str]:
    """For a process that shall load sanitized libraries."""
    names = ("libasan.so", "libstdc++.so.6")  # the second, or libasan cannot pass on exceptions
    asked = [[compiler(), f"-print-file-name={name}"] for name in names]
    paths = [subprocess.run(a, capture_output=True, text=True, check=True).stdout for a in asked]
    return {
        SANITIZE_SWITCH: "1",
        "LD_PRELOAD": " ".join(path.strip() for path in paths),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def library(kind: str | None = None) -> Path:
    """The emulated operators; of the kind that the environment asks for if None."""
    return build("erase_emulated", sources(), kind)


def probes(kind: str | None = None) -> Path:
    """What tests/emu/probes has; of the kind that the environment asks for if None."""
    return build("erase_probes", probe_sources(), kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the emulated CUDA kernels.")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; default: as asked for")
    for wanted in parser.parse_args().kinds or [None]:
        print(library(wanted), probes(wanted), sep="\n")
