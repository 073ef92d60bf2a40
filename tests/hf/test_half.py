"""Models in half precision: what rounding may change is measured, the rest is exact.

Half-precision scores may choose other tokens than fp32 would, so the oracle scores for itself but
follows the session's choices. It runs once in the model's dtype and once in fp32 with the same
weights; the difference is what that dtype costs, and the pruned model may cost twice as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import erase
from erase_kernels.testing import record_ops
from tests.hf.calls import Outcome, forced_loop
from tests.hf.cases import Case, by_name
from tests.hf.common import assert_scores, errors_apart, logit_differences, oracle_images
from tests.hf.operators import erase_ops, expected_ops, ran_ops
from tests.hf.place import BACKEND, ON_GPU
from tests.models import FAMILIES, shared_model
from tests.oracle import Oracle
from tests.prompts import chat_processor

NAMES = ("greedy_photo", "ragged_batch")
WIDEST_SCORES = 0.5
"""Relative; the largest score of a row is many times the smallest."""
if ON_GPU:
    NAMES += ("greedy_page", "two_images", "videos_and_image", "padded_row", "last_layer")


def run_pruned(case: Case, family: str, attention: str, dtype: torch.dtype, query: str) -> Any:
    """(outcome, session, private operators) of the case on a cast model."""
    model = shared_model(family, attention, dtype)
    config = erase.EraseConfig(**case.settings(query=query))
    session = erase.prune(model, config, chat_processor())
    with torch.no_grad(), session, record_ops() as ops:
        outcome = forced_loop(model, case.build())
    return outcome, session, erase_ops(ops)


def run_oracle(
    case: Case, family: str, dtypes: tuple[torch.dtype, ...], query: str, reports: list[Any]
) -> tuple[Outcome, Oracle]:
    model, prompts = shared_model(family, "eager", *dtypes), case.build()
    config = erase.EraseConfig(**case.settings(query=query))
    with torch.no_grad(), Oracle(model, config, oracle_images(prompts), reports) as oracle:
        return forced_loop(model, prompts), oracle


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"] if ON_GPU else ["sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(
    name: str, family: str, dtype: torch.dtype, attention: str, query: str
) -> None:
    case = by_name(name)
    got, session, ops = run_pruned(case, family, attention, dtype, query)
    reports = list(session.reports)
    half, oracle = run_oracle(case, family, (dtype,), query, reports)
    single, truth = run_oracle(case, family, (dtype, torch.float32), query, reports)
    limit = errors_apart(half, oracle, single, truth, torch.finfo(dtype).eps)
    (report,), (turn,) = reports, oracle.turns
    for row, wanted, layer in zip(report.rows, turn.rows, case.layers[0], strict=True):
        assert row.layer == wanted.layer == layer
        for image, want in zip(row.images, wanted.images, strict=True):
            np.testing.assert_array_equal(image.entropy.cpu().numpy(), want.entropy)
            assert image.kept.tolist() == want.kept
        if layer is not None:
            assert row.candidates.tolist() == wanted.candidates
            assert_scores(row, wanted, limit)
    assert ops == ran_ops(expected_ops([turn], kv=True))
    assert set(report.backends.values()) == {BACKEND}
    assert max(logit_differences(got, half, oracle)) <= limit.logits
    with torch.no_grad():
        stock = forced_loop(shared_model(family, attention, dtype), case.build())
    unpruned = max(logit_differences(stock, half, oracle))
    assert unpruned > 2 * limit.logits, "the limit is too wide to tell"
    rounding = torch.finfo(dtype).eps
    assert limit.scores < WIDEST_SCORES + rounding, "the limit is too wide to tell"
