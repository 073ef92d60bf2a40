"""Every call style, pruned, equals the oracle."""

from __future__ import annotations

import pytest

from tests.hf.cases import CASES, CONFIG_CASES, Case
from tests.hf.common import (
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
    expected_ops,
    limits,
    ran_ops,
    run_oracle,
    run_pruned,
    run_stock,
)
from tests.models import FAMILIES


def check(case: Case, family: str, attention: str, query: str) -> None:
    want, oracle = run_oracle(case, family, query=query)
    layers = tuple(tuple(row.layer for row in turn.rows) for turn in oracle.turns)
    assert layers == case.layers, "the case does not exercise the layers it is meant to"
    got = run_pruned(case, family, attention, query=query)
    limit = limits(case, family, query=query)
    assert_reports(got.reports, oracle.turns, kv=got.outcome.cache is not None, limit=limit)
    assert_outcomes(got.outcome, want, oracle, limit)
    ran = expected_ops(oracle.turns, kv=got.outcome.cache is not None)
    assert got.ops == ran_ops(ran)
    assert_cache(got.outcome, oracle)
    assert got.pruned == len(oracle.turns)
    assert got.seen == got.pruned
    assert differs_clearly(got.outcome, run_stock(case, family, attention), oracle)


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
