"""A GPU computes in plain fp32 here, and whatever a kernel found wrong fails the test it was in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from erase_kernels import check_status
from tests.hf.place import BACKEND, DEVICE, ON_GPU


def pytest_report_header(config: pytest.Config) -> str:
    name = torch.cuda.get_device_name(DEVICE) if ON_GPU else "the CPU"
    return f"integration tests: on {name}, operators on {BACKEND}"


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
