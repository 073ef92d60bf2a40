"""A GPU computes in plain fp32 here, and whatever a kernel found wrong fails the test it was in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from erase_kernels import check_status
from tests.hf.place import BACKEND, DEVICE, ON_GPU

PACKAGES = {
    "test_placement.py": ("accelerate",),
    "test_quantized.py": ("bitsandbytes", "torchao"),
    "test_wrapped.py": ("peft",),
}
"""What files import that a machine with a GPU may lack; the development set-up has all of it."""
LACKING = {
    file: absent
    for file, packages in PACKAGES.items()
    if ON_GPU and (absent := [name for name in packages if find_spec(name) is None])
}
collect_ignore = list(LACKING)


def pytest_report_header(config: pytest.Config) -> list[str]:
    name = torch.cuda.get_device_name(DEVICE) if ON_GPU else "the CPU"
    without = [f"not run: {file}, for there is no {', '.join(a)}" for file, a in LACKING.items()]
    return [f"integration tests: on {name}, operators on {BACKEND}", *without]


@pytest.fixture(autouse=True, scope="session")
def _plain_fp32() -> None:
    """Without TF32, whose 10-bit mantissas would hide what the tests look for."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _nothing_found_wrong() -> Iterator[None]:
    """Kernels skip bad data without a word; a test that brings some takes the error itself."""
    yield
    check_status(DEVICE)
