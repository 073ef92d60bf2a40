"""What the machine can do, measured, and what it is."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

import erase_kernels

ROOT = Path(__file__).resolve().parent.parent
COPY_BYTES = 256 << 20  # far beyond any cache
MULTIPLY_LATENCY = 3  # cycles of a 64-bit imul on every x86-64 core since 2008
MULTIPLICATIONS = 20_000_000
REPEATS = 5

CHAIN = """
unsigned long chain(unsigned long n) {
  unsigned long x = n | 1;
  for (unsigned long i = 0; i < n; i += 4)
    __asm__ volatile("imul %0, %0\\n imul %0, %0\\n imul %0, %0\\n imul %0, %0" : "+r"(x));
  return x;
}
"""


def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a large copy with the present number of threads."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(REPEATS))
    return 2 * COPY_BYTES / best


def cycles_per_second() -> float:
    """Clock while computing, from a chain of dependent multiplications of known latency."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("measuring the clock needs a C compiler (cc, gcc or clang)")
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "chain.c", Path(scratch) / "chain.so"
        source.write_text(CHAIN)
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True
        )
        chain = ctypes.CDLL(str(library)).chain
        chain.argtypes, chain.restype = [ctypes.c_ulong], ctypes.c_ulong
        best = min(_seconds(lambda: chain(MULTIPLICATIONS)) for _ in range(REPEATS))
    return MULTIPLICATIONS * MULTIPLY_LATENCY / best


def _seconds(function: object) -> float:
    start = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - start


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_revision() -> str:
    """Commit of the sources, marked where they differ from it; results do not count."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git)"
    return f"{head[:12]}{' with local changes' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def provenance(device: str, command: str, revision: str = "") -> dict[str, object]:
    """Device, driver, versions, revision and command: what a number is worth nothing without.

    Args:
        device: "cpu" or "cuda".
        command: how to repeat it.
        revision: of the sources, where they are measured without their repository.
    """
    info = erase_kernels.backend_info()
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        **(_cuda_facts() if cuda else {}),
        "cores": os.cpu_count(),
        "instruction set": info.cpu_clone,
        "driver": _driver() if cuda else "none (CPU)",
        "system": f"{platform.system()} {platform.release()}",
        **info.versions,
        "native build": info.native_hash[:12],
        "revision": revision or git_revision(),
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cuda_facts() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": str(torch.version.cuda),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no nvidia-smi)"
    return done.stdout.split()[0]
