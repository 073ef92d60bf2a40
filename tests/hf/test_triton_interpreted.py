"""Pruned prefills and decode steps on the Triton kernels, in triton's interpreter.

What a GPU runs compiled; a few small cases here, all of them there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase_kernels import _backends, check_status
from erase_kernels.testing import record_ops
from tests.hf.calls import Outcome, forced_loop
from tests.hf.cases import BASE_CONFIG, Case
from tests.hf.common import LOGIT_TOLERANCE, SCORE_FLOOR, SCORE_TOLERANCE
from tests.hf.operators import STAGE1_OPS, STAGE2_OPS, erase_ops
from tests.hf.place import DEVICE
from tests.models import shared_model
from tests.prompts import CELL, Prompt, chat_processor, encode, noise, page

CPU = torch.device("cpu")
OPERATORS = STAGE1_OPS | STAGE2_OPS | {"compact_rows", "compact_kv"}


def one_image() -> list[Prompt]:
    return [encode([[noise(2, 3), "What is it?"]])]


def ragged() -> list[Prompt]:
    """Rows of one image, none and two, pruned after different layers."""
    flat = np.full((2 * CELL, 2 * CELL, 3), 200, np.uint8)
    rows = [
        [noise(2, 2), "What?"],
        ["Why is the sky blue?"],
        [page(3, 3), "A ", flat],
    ]
    return [encode(rows)]


def run(
    case: Case, query: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Outcome, erase.Session]:
    monkeypatch.setattr(_backends, "preferred", lambda device: backend)
    model = shared_model("qwen2_5_vl")
    config = erase.EraseConfig(**{**BASE_CONFIG, "keep_ratio": 0.25, "query": query})
    session = erase.prune(model, config, chat_processor())
    with torch.no_grad(), session, record_ops() as ops:
        outcome = case.call(model, case.build())
    check_status(DEVICE)
    assert erase_ops(ops) == {f"{operator}_{backend}" for operator in OPERATORS}
    assert set(session.report.backends.values()) == {backend}
    return outcome, session


def check(case: Case, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, native = run(case, query, "native", monkeypatch)
    got, triton = run(case, query, "triton", monkeypatch)
    layers = [row.layer for row in triton.report.rows]
    assert layers == list(case.layers[0])
    for a, b in zip(triton.report.rows, native.report.rows, strict=True):
        for mine, other in zip(a.images, b.images, strict=True):
            assert torch.equal(mine.entropy, other.entropy)
            assert (mine.median, mine.level) == (other.median, other.level)
            assert torch.equal(mine.kept, other.kept)
        assert torch.equal(a.kept, b.kept)
        if a.layer is not None:
            assert torch.equal(a.candidates, b.candidates)
            limit = {"rtol": SCORE_TOLERANCE, "atol": SCORE_FLOOR}
            torch.testing.assert_close(a.scores, b.scores, **limit)
    assert triton.report.kv_lengths == native.report.kv_lengths
    # The same tokens stay, so all that follows is the same arithmetic.
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=LOGIT_TOLERANCE)
    for a, b in zip(got.cache.layers, want.cache.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=0, atol=LOGIT_TOLERANCE)
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=LOGIT_TOLERANCE)


CASES = (
    Case("one_image", one_image, forced_loop, ((3,),)),
    Case("ragged", ragged, forced_loop, ((3, None, 1),)),
)

if DEVICE == CPU:  # on a GPU every test of this folder runs on these kernels, compiled

    @pytest.mark.parametrize(
        ("case", "query"),
        [(CASES[0], "exact"), (CASES[0], "released"), (CASES[1], "exact")],
        ids=["one_image-exact", "one_image-released", "ragged-exact"],
    )
    def test_as_native(case: Case, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert _backends.TRITON.interpreted, _backends.TRITON
        check(case, query, monkeypatch)
