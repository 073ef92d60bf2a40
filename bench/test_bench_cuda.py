"""Every row of the GPU's table through pytest-benchmark: `pytest bench --device cuda`.

A round replays a CUDA graph and waits for it, by the host's clock; `bench.device` times with events
and is what the committed results come from.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.device import backends_on, make_copies, release
from bench.device_rows import all_rows
from bench.problem import Problem
from bench.rows import PLAIN, PUBLISHED
from bench.timing import CudaTimer, prepare_round

ROWS = {row.name: row for row in all_rows()}
BACKENDS = backends_on(torch.device("cuda"))
ROUNDS = 20


@functools.cache
def timer() -> CudaTimer:
    return CudaTimer(torch.device("cuda", torch.cuda.current_device()))


@functools.lru_cache(maxsize=1)
def prepared(name: str) -> tuple[Problem, list[Any]]:
    """Operands of the row under test, which its implementations share."""
    release(timer().device)
    problem = ROWS[name].problem(timer().device)
    return problem, make_copies(problem, timer().cache_bytes)


@pytest.mark.parametrize("implementation", [*BACKENDS, PUBLISHED, PLAIN])
@pytest.mark.parametrize("name", ROWS)
def test_row(benchmark: BenchmarkFixture, name: str, implementation: str) -> None:
    problem, copies = prepared(name)
    ours = implementation in BACKENDS
    run = functools.partial(problem.ours, implementation) if ours else problem.peers[implementation]
    problem.verify(run, ours)
    round_of = prepare_round(timer(), run, copies)

    def evict() -> None:
        timer().evict()
        timer().finish()

    def play() -> None:
        round_of.play()
        timer().finish()

    benchmark.group = name
    benchmark.extra_info.update(
        row=name,
        implementation=implementation,
        calls_per_round=round_of.calls,
        how=round_of.how,
        bytes_moved=problem.bytes_moved,
        operations=problem.operations,
    )
    benchmark.pedantic(play, setup=evict, rounds=ROUNDS, iterations=1, warmup_rounds=1)
