"""Peak extra memory of each implementation: resident pages beyond those before the call.

The kernel keeps the high-water mark of a process's resident memory and lets it be reset (writing 5
to /proc/self/clear_refs). Unlike a profiler this sees every allocation, also those a library makes
behind torch's back. Large blocks are made to come from and go back to the system at once, and each
function runs once before it is measured, so that pools and thread stacks exist. Results count, as
they do for a user.

    python -m bench.memory THREADS [TEXT]     prints {row: {implementation: bytes}} as JSON
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.rows import IMPLEMENTATIONS, all_rows

M_MMAP_THRESHOLD = -3  # mallopt(3)
MMAP_THRESHOLD_BYTES = 64 << 10
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs
REPEATS = 3


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_extra(function: Callable[[], Any]) -> int:
    """Bytes by which resident memory rose above its level before the call; the least of a few."""
    libc = ctypes.CDLL(None)
    function()
    rises = []
    for _ in range(REPEATS):
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        before = _status("VmRSS")
        result = function()
        rises.append(_status("VmHWM") - before)
        del result
    return max(min(rises), 0)


def main(threads: int, only: str = "") -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    torch.set_num_threads(threads)
    report: dict[str, dict[str, int]] = {}
    for row in all_rows():
        if only not in row.name:
            continue
        prepared = row.prepare()
        report[row.name] = {name: peak_extra(prepared.run[name]) for name in IMPLEMENTATIONS}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3])
