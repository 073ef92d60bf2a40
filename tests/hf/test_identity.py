"""keep_ratio = 1 changes nothing: every call style gives the bits of the unpatched model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import erase
from tests.hf.calls import Outcome, direct, direct_loop, greedy
from tests.hf.cases import CASES, Case
from tests.hf.common import run_pruned, run_stock
from tests.hf.place import BACKEND
from tests.models import FAMILIES, shared_model
from tests.prompts import Prompt, Video, chat_processor, encode, noise


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, also where padding that sees nothing is NaN, as some attention kernels make it."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def tensors(layer: Any) -> dict[str, torch.Tensor]:
    """Keys and values of a cache layer, or whatever else it keeps."""
    own = vars(layer).items()
    found = {k: v for k, v in own if isinstance(v, torch.Tensor)}
    states = {f"{k} {i}": v for k, part in own if isinstance(part, dict) for i, v in part.items()}
    return found | {k: v for k, v in states.items() if isinstance(v, torch.Tensor)}


def assert_same_bits(got: Outcome, want: Outcome) -> None:
    assert len(got.logits) == len(want.logits)
    for a, b in zip(got.logits, want.logits, strict=True):
        assert same(a, b)
    for a, b in zip(got.tokens, want.tokens, strict=True):
        assert torch.equal(a, b)
    if want.loss is not None:
        assert torch.equal(got.loss, want.loss)
    if want.cache is not None:
        for a, b in zip(got.cache.layers, want.cache.layers, strict=True):
            got_state, want_state = tensors(a), tensors(b)
            assert got_state.keys() == want_state.keys() != set()
            assert all(same(got_state[name], want_state[name]) for name in want_state)


@pytest.mark.parametrize(
    ("force_gathers", "query"), [(False, "exact"), (True, "exact"), (True, "released")]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keep_everything(
    case: Case, family: str, attention: str, force_gathers: bool, query: str
) -> None:
    stock = run_stock(case, family, attention)
    fields = {"keep_ratio": 1.0, "force_gathers": force_gathers, "query": query}
    got = run_pruned(case, family, attention, **fields)
    assert_same_bits(got.outcome, stock)
    # Not vacuous: the session saw the images, planned, and kept every token.
    assert len(got.reports) == len(case.layers)
    for report, layers in zip(got.reports, case.layers, strict=True):
        for row, layer in zip(report.rows, layers, strict=True):
            assert len(row.kept) == sum(len(image.entropy) for image in row.images)
            assert row.layer == (layer if force_gathers else None)
        if force_gathers:
            assert {"compact_rows", "text_to_vision_scores"} <= set(report.backends)
            assert set(report.backends.values()) == {BACKEND}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_after_remove(case: Case, family: str) -> None:
    stock = run_stock(case, family)
    model = shared_model(family)
    session = erase.prune(
        model, erase.EraseConfig(**case.settings()), processor=chat_processor(case.do_normalize)
    )
    with torch.no_grad():
        pruned = case.call(model, case.build())
    session.remove()
    assert any(not torch.equal(a, b) for a, b in zip(pruned.logits, stock.logits, strict=True)), (
        "the session did not prune, so its removal proves nothing"
    )
    assert_same_bits(run_stock(case, family), stock)


def _text_only() -> list[Prompt]:
    return [encode([["Hello."], ["Who speaks at the end?"]])]


def _video_only() -> list[Prompt]:
    frames = np.stack([noise(2, 3, seed) for seed in range(4)])
    return [encode([["Look: ", Video(frames), " Summarise the video."]])]


@pytest.mark.parametrize("build", [_text_only, _video_only])
@pytest.mark.parametrize("call", [greedy, direct, direct_loop])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_images_nothing_changes(family: str, call: Callable, build: Callable) -> None:
    case = Case("no_images", build, call, ())
    stock = run_stock(case, family)
    got = run_pruned(case, family)
    assert_same_bits(got.outcome, stock)
    assert got.reports == []
    assert (got.seen, got.pruned) == (0, 0)
    assert got.ops == set()
