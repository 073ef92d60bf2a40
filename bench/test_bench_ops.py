"""Times every row of the table: ours and both peers in one process, once they agree."""

from __future__ import annotations

import functools
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.rows import IMPLEMENTATIONS, Prepared, all_rows

ROWS = {row.name: row for row in all_rows()}
BUDGET_S = 1.0  # of one implementation of one row
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
LEAST_ROUND_S = 1e-3  # shorter calls are repeated within a round, against the timer's resolution


@functools.lru_cache(maxsize=1)
def prepared(name: str) -> Prepared:
    """Operands of the row under test, verified; the three implementations of a row share them."""
    row = ROWS[name].prepare()
    row.verify()
    return row


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ROWS)
def test_row(benchmark: BenchmarkFixture, name: str, implementation: str, threads: int) -> None:
    row = prepared(name)
    function = row.run[implementation]
    function()
    start = time.perf_counter()
    function()
    once = time.perf_counter() - start
    iterations = max(1, int(LEAST_ROUND_S / once))
    rounds = min(max(int(BUDGET_S / (once * iterations)), LEAST_ROUNDS), MOST_ROUNDS)
    benchmark.group = name
    benchmark.extra_info.update(
        row=name,
        implementation=implementation,
        threads=threads,
        bytes_moved=row.bytes_moved,
        increments=row.increments,
    )
    benchmark.pedantic(function, rounds=rounds, iterations=iterations, warmup_rounds=1)
