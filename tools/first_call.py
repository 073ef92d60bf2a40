"""How long the first call of every operator takes, in a fresh process that has CUDA initialised.

    python -m tools.first_call [--device cuda] [--backends native triton]

Loading a kernel's machine code is part of it, for Triton importing it and reading its disk cache,
or compiling. Every figure comes from a process forked off one that has imported the package and
done nothing else; it initialises CUDA, makes operands, and then calls. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.device.subjects import SUBJECTS
from tools.gpu_steps import NOTE_LINE

TARGET_MS = 50.0  # of a native operator
FORK_LIMIT_S = 60  # after which a process that hangs is ended
CALLED = {  # private operator -> what calls it
    "patch_entropy": "patch_entropy",
    "patch_entropy_from_pixels": "patch_entropy_from_pixels fp32",
    "complexity_plan": "complexity_plan",
    "segmented_topk": "segmented_topk",
    "text_to_vision_scores": "text_to_vision_scores bf16",
    "compact_kv": "compact_kv_ bf16",
    "compact_kv_paged": "compact_kv_ paged",
    "compact_rows": "compact_rows bf16",
}


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(operator: str, backend: str, device: torch.device) -> dict[str, Any]:
    """Milliseconds of the first and the second call, in this process."""
    subject = SUBJECTS[CALLED[operator]](device)
    finish(device)
    taken, before = [], cached_kernels()
    for _ in range(2):
        start = time.perf_counter()
        subject.call(backend)
        finish(device)
        taken.append(round((time.perf_counter() - start) * 1e3, 2))
    compiled = backend == "triton" and cached_kernels() > before
    return {"first_ms": taken[0], "second_ms": taken[1], "compiled": compiled}


def cached_kernels() -> int:
    """Entries of Triton's disk cache."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns in a process of its own, or {"error": why not}."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(FORK_LIMIT_S)
        try:
            result = work()
        except Exception as error:  # the parent reports it
            result = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writer, "w") as stream:
            json.dump(result, stream)
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return {"error": f"the process ended with {os.waitstatus_to_exitcode(status)}"}
    found: dict[str, Any] = json.loads(text)
    return found


def measure_all(backends: list[str], device: torch.device) -> dict[str, dict[str, Any]]:
    """Operator -> backend -> what `measure` says; Triton once more where it had to compile."""
    found: dict[str, dict[str, Any]] = {operator: {} for operator in CALLED}
    for backend in backends:
        for operator in CALLED:
            result = in_a_fork(lambda o=operator, b=backend: measure(o, b, device))
            if result.get("compiled"):
                again = in_a_fork(lambda o=operator, b=backend: measure(o, b, device))
                result = {**again, "compiling_ms": result["first_ms"]}
            found[operator][backend] = result
            print(f"  {operator} {backend}: {result}", flush=True)
            print(json.dumps({"first_calls": found}), flush=True)  # the last one counts
    return found


def verdict(found: dict[str, dict[str, Any]]) -> str:
    """One line about the native operators."""
    native = {o: by["native"]["first_ms"] for o, by in found.items() if "first_ms" in by["native"]}
    if not native:
        return "no native operator was measured"
    slowest = max(native, key=lambda operator: native[operator])
    met = "met" if native[slowest] < TARGET_MS else "missed"
    return f"native at most {native[slowest]:.1f} ms ({slowest}); {TARGET_MS:g} ms wanted: {met}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--backends", nargs="+", default=["native", "triton"])
    arguments = parser.parse_args()
    index = None if arguments.device == "cpu" else 0
    found = measure_all(arguments.backends, torch.device(arguments.device, index))
    broken = [result for by in found.values() for result in by.values() if "error" in result]
    if "native" in arguments.backends:
        print(f"{NOTE_LINE}{verdict(found)}")
    print(json.dumps({"first_calls": found}))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
