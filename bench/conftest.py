"""Options of the benchmark suite."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads torch may use")


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> int:
    count = int(request.config.getoption("--threads"))
    torch.set_num_threads(count)
    return count
