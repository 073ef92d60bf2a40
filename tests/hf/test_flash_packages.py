"""Pruning with flash attention in bf16 against SDPA in bf16 and fp32: choices and logits.

On a GPU with a flash attention package its kernels run, elsewhere stand-ins: what is compared is
the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.utils import import_utils

import erase
from erase.demo.model import build_model
from tests.hf.calls import Outcome, forced_loop
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import ERRORS_APART
from tests.hf.flash import flash_kernels, with_flash
from tests.hf.place import DEVICE, ON_GPU
from tests.prompts import chat_processor

VERSIONS = tuple(
    f"flash_attention_{n}"
    for n in (2, 3, 4)
    if ON_GPU and getattr(import_utils, f"is_flash_attn_{n}_available")()
)
STAND_IN = "flash_attention_2 by stand-ins"
NAMES = VERSIONS or (STAND_IN,)
MARGIN = 0.05
"""Relative distance to the last kept score within which bf16 may choose another token."""
CASES = ("greedy_photo", "ragged_batch")
"""Dense kernels, and those for ragged batches."""


@functools.cache
def demo_model(dtype: torch.dtype) -> Any:
    """Heads of 64 channels, which every flash attention kernel has."""
    return build_model(0, DEVICE).to(dtype)


@contextlib.contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """The decoder's attention by ``name``; the vision tower's stays."""
    kernels = flash_kernels() if name == STAND_IN else contextlib.nullcontext()
    own = contextlib.nullcontext() if name == "sdpa" else with_flash(model, name.split(" ")[0])
    with kernels, own:
        yield


def run(dtype: torch.dtype, case_name: str, name: str, **fields: Any) -> tuple[Outcome, Any]:
    model, case = demo_model(dtype), by_name(case_name)
    config = erase.EraseConfig(**{**BASE_CONFIG, **fields})
    with (
        torch.no_grad(),
        attention(model, name),
        erase.prune(model, config, chat_processor()) as session,
    ):
        return forced_loop(model, case.build()), session.report


def apart(a: Outcome, b: Outcome) -> float:
    """Largest difference of the last prompt token's logits and of the steps'."""
    pairs = zip(a.logits, b.logits, strict=True)
    last = [(x[:, -1], y[:, -1]) if x.ndim == 3 else (x, y) for x, y in pairs]
    return max(float((x.float() - y.float()).abs().max()) for x, y in last)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str, case: str) -> None:
    """Where entropies alone choose, flash attention is as near the truth as SDPA is."""
    fields = {"stage2": False}
    truth, want = run(torch.float32, case, "sdpa", **fields)
    rough, _ = run(torch.bfloat16, case, "sdpa", **fields)
    got, report = run(torch.bfloat16, case, name, **fields)
    for a, b in zip(report.rows, want.rows, strict=True):
        assert torch.equal(a.kept, b.kept)
    assert report.kv_lengths == want.kv_lengths
    error = apart(rough, truth)
    assert error > 0
    assert apart(got, truth) <= ERRORS_APART * error


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_choices(name: str, case: str) -> None:
    """Stage 2 keeps the same tokens, but for those whose scores lie at the margin."""
    _, want = run(torch.bfloat16, case, "sdpa")
    outcome, got = run(torch.bfloat16, case, name)
    assert all(bool(torch.isfinite(step[:, -1]).all()) for step in outcome.logits)
    assert got.kv_lengths == want.kv_lengths
    for a, b in zip(got.rows, want.rows, strict=True):
        assert a.layer == b.layer
        assert len(a.kept) == len(b.kept)
        if b.scores is None:
            assert torch.equal(a.kept, b.kept)
            continue
        scores = dict(zip(b.candidates.tolist(), b.scores.tolist(), strict=True))
        last = min(scores[token] for token in b.kept.tolist())
        for token in set(a.kept.tolist()) ^ set(b.kept.tolist()):
            assert abs(scores[token] - last) <= MARGIN * last
