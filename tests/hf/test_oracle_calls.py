"""Every call style, pruned, equals the oracle."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hf.cases import CASES, CONFIG_CASES, Case
from tests.hf.common import (
    Pruned,
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
    limits,
    run_oracle,
    run_pruned,
    run_stock,
)
from tests.hf.operators import expected_ops, ran_ops
from tests.hf.subjects import Family
from tests.models import FAMILIES
from tests.oracle import Oracle


def check(case: Case, family: str, attention: str, query: str) -> None:
    _, oracle = run_oracle(case, family, query=query)
    assert layers_of(oracle) == case.layers, "the case does not exercise the layers it is meant to"
    assert_pruned(case, family, attention, query=query)


def layers_of(oracle: Oracle) -> tuple[tuple[int | None, ...], ...]:
    """After which layer each row of each prefill is pruned."""
    return tuple(tuple(row.layer for row in turn.rows) for turn in oracle.turns)


def assert_pruned(
    case: Case, family: Family, attention: str, *, drafts: bool = False, **overrides: Any
) -> Pruned:
    """The pruned run, which is what the oracle says it must be.

    ``drafts``: the prefill held drafted tokens, so its cache was longer than the oracle's.
    """
    want, oracle = run_oracle(case, family, **overrides)
    got = run_pruned(case, family, attention, **overrides)
    limit = limits(case, family, **overrides)
    kv = got.outcome.cache is not None and not drafts
    assert_reports(got.reports, oracle.turns, kv=kv, limit=limit)
    assert_outcomes(got.outcome, want, oracle, limit)
    ran = expected_ops(oracle.turns, kv=got.outcome.cache is not None)
    assert case.compiled or got.ops == ran_ops(ran)
    assert_cache(got.outcome, oracle)
    assert got.pruned == len(oracle.turns)
    assert got.seen == got.pruned
    assert differs_clearly(got.outcome, run_stock(case, family, attention), oracle)
    return got


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_call_style(case: Case, family: str, attention: str, query: str) -> None:
    check(case, family, attention, query)


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CONFIG_CASES, ids=lambda case: case.name)
def test_configuration(case: Case, family: str, query: str) -> None:
    check(case, family, "sdpa", query)
