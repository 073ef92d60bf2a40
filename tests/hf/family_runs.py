"""One prefill and a few tokens of a tiny family: stock, pruned, and masked by the oracle."""

from __future__ import annotations

from typing import Any

import torch

import erase
from tests.families import TinyFamily
from tests.hf.calls import Outcome, generate_into
from tests.hf.cases import BASE_CONFIG, DESCRIBE
from tests.hf.common import (
    CLEAR_MARGIN,
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
)
from tests.hf.watch import Watch
from tests.oracle import Oracle
from tests.prompts import Prompt, noise, page, photo

RAGGED = (
    (photo(5, 6), DESCRIBE),
    ("Compare: ", page(6, 7), " and ", page(3, 4, seed=3), " What is the difference?"),
    ("How many people are in the picture?",),
    (page(5, 5, seed=5), noise(2, 3), " Answer with yes or no."),
)
"""Several images in a row, none in another, and rows that prune at different layers."""


def ragged(family: TinyFamily) -> Prompt:
    return family.encode([list(row) for row in RAGGED])


def generated(model: Any, inputs: dict[str, Any], new_tokens: int = 4) -> Outcome:
    out = Outcome()
    with torch.no_grad():
        generate_into(out, model, new_tokens, **inputs)
    return out


def pruned(
    family: TinyFamily,
    inputs: dict[str, Any],
    attention: str = "sdpa",
    processor: Any = None,
    **overrides: Any,
) -> tuple[Outcome, list[Any]]:
    """Outcome and reports of a session."""
    model = family.model(attention)
    config = erase.EraseConfig(**{**BASE_CONFIG, **overrides})
    with erase.prune(model, config, processor) as session:
        return generated(model, inputs), list(session.reports)


def assert_as_the_oracle(
    family: TinyFamily, prompt: Prompt, attention: str = "sdpa", processor: Any = None
) -> list[Any]:
    """Kept tokens, entropies, scores, logits and cache are the oracle's; returns the reports."""
    model = family.model("eager")
    with Oracle(model, erase.EraseConfig(**BASE_CONFIG), prompt.images) as oracle:
        want = generated(model, prompt.inputs)
    assert not oracle.unused_images
    for row in oracle.turns[0].rows:
        assert row.margin is None or row.margin > CLEAR_MARGIN, "choose other pictures"
    got, reports = pruned(family, prompt.inputs, attention, processor)
    assert_reports(reports, oracle.turns, kv=True)
    assert_outcomes(got, want, oracle)
    assert_cache(got, oracle)
    assert differs_clearly(got, generated(family.model(attention), prompt.inputs), oracle)
    return reports


def assert_same_logits(got: Outcome, want: Outcome) -> None:
    assert len(got.logits) == len(want.logits)
    for a, b in zip(got.logits, want.logits, strict=True):
        assert torch.equal(a, b)


def reads_of_a_prefill(family: TinyFamily, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Host reads that pruning adds to a stock forward, and numbers that it uploads elsewhere than
    where that does not wait."""
    model = family.model()
    with torch.no_grad(), Watch() as stock:
        model(**inputs)
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG)), Watch() as watch:
        model(**inputs)
    return watch.reads - stock.reads, watch.from_host
