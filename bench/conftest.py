"""Options of the benchmark suite, and which of its files a device takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

FILES = {"cpu": "test_bench_ops.py", "cuda": "test_bench_cuda.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads torch may use")
    parser.addoption("--device", choices=tuple(FILES), default="cpu", help="where to measure")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks of the other device are no part of a run, and not skipped tests of it either."""
    wanted = FILES[config.getoption("--device")]
    return True if collection_path.name in set(FILES.values()) - {wanted} else None


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> int:
    count = int(request.config.getoption("--threads"))
    torch.set_num_threads(count)
    return count
