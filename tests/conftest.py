"""Every test runs on the native library, one thread, and memory that is never zero by accident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import erase_kernels
from erase_kernels import _native
from tests.selection import poisoned as poisoned
from tests.selection import supported_clones as supported_clones
from tests.selection import threads as threads


def pytest_configure(config: pytest.Config) -> None:
    if not _native.STATUS.available:
        raise pytest.UsageError(f"the tests need the native library: {_native.STATUS.reason}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    return str(erase_kernels.backend_info()).splitlines()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    """Tests that vary the number of threads set it themselves; it is put back."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
