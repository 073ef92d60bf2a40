"""Runs the native CUDA kernels of every operator on small odd shapes: what a sanitizer watches.

    python -m tools.sanitizer_cases

Results are not looked at (the operator tests do that), so that nothing unwritten is copied back.
"""

from __future__ import annotations

import sys

import torch

from erase_kernels import check_status
from erase_kernels.testing import record_ops
from tests.device.subjects import SUBJECTS

BEGUN, DONE = "cases: begun", "cases: done"  # lines by which `tools.sanitize` knows how far it got
VARIANTS = (0, 1)


def run_cases(device: torch.device, backend: str = "native") -> int:
    """Calls every subject twice, with other values in place; returns how many calls ran.

    Raises:
        AssertionError: another kernel ran than the subject's.
        ValueError: the kernels found bad data, of which there is none.
    """
    calls = 0
    for name, build in SUBJECTS.items():
        subject = build(device)
        for variant in VARIANTS:
            subject.fill(variant)
            with record_ops() as ran:
                subject.call(backend)
            if ran != [f"erase_kernels::{subject.ran}_{backend}"]:
                raise AssertionError(f"{name}: {ran} ran")
            calls += 1
        check_status(device)  # waits
        print(f"  {name}", flush=True)
    return calls


def main() -> int:
    device = torch.device("cuda", 0)
    torch.zeros(1).to(device)
    torch.cuda.synchronize()
    print(BEGUN, flush=True)
    calls = run_cases(device)
    print(f"{DONE}, {calls} calls", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
