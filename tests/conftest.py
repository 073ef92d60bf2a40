"""On the CPU all tests have the native library; one thread, and memory that is never zero by luck.

``ERASE_KERNELS_TEST_DEVICE=cuda`` runs the tests under tests/device and tests/hf on a GPU; without
it Triton kernels run in triton's interpreter, which must be chosen before triton is imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterator

DEVICE_SWITCH = "ERASE_KERNELS_TEST_DEVICE"
ON_CPU = os.environ.get(DEVICE_SWITCH, "cpu") == "cpu"
if ON_CPU:
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

import erase_kernels  # noqa: E402
from erase_kernels import _native  # noqa: E402
from tests.selection import poisoned as poisoned  # noqa: E402
from tests.selection import supported_clones as supported_clones  # noqa: E402
from tests.selection import threads as threads  # noqa: E402
from tests.support_plugin import pytest_addoption as pytest_addoption  # noqa: E402
from tests.support_plugin import register as register_support  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    if ON_CPU and not _native.STATUS.available:  # on a GPU the tests may do without
        raise pytest.UsageError(f"the tests need the native library: {_native.STATUS.reason}")
    if ON_CPU:
        register_support(config)


# After any of these every further call on the device fails, whatever it is.
POISONED = re.compile(
    r"illegal memory access|misaligned address|unspecified launch failure|illegal instruction"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On a GPU failures are printed at once; a worker that lost its device ends."""
    report = yield
    if not ON_CPU and report.failed:
        text = report.longreprtext
        print(f"FAILED {item.nodeid}\n{text[-1500:]}", file=sys.__stderr__, flush=True)
        if POISONED.search(text) and "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
    return report


def pytest_report_header(config: pytest.Config) -> list[str]:
    return str(erase_kernels.backend_info()).splitlines()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    """Tests that vary the number of threads set it themselves; it is put back."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
