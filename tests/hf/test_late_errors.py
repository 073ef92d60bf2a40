"""Kernels of an accelerator cannot raise: what they found wrong is raised by the next copy.

On the CPU Triton kernels stand in for an accelerator's, in triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import erase
from erase_kernels import _backends, check_status, status_word
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import snapshot
from tests.hf.place import DEVICE
from tests.models import build_model, shared_model
from tests.prompts import chat_processor, encode, noise

FAMILY = "qwen2_5_vl"


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_backends, "preferred", lambda device: "triton")
    with torch.no_grad():
        yield


def inputs(do_normalize: bool = True) -> dict[str, torch.Tensor]:
    return encode([[noise(2, 2), "What is it?"]], do_normalize=do_normalize).inputs


def prune(model: Any) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**BASE_CONFIG), chat_processor())


def status() -> int:
    return int(status_word(DEVICE).item())


def test_bad_pixels_are_raised_in_their_own_prefill() -> None:
    """And before anything is changed: the cache they came with is as before."""
    model, cache = shared_model(FAMILY), DynamicCache()
    before = snapshot(model)
    with prune(model) as session:
        model(**encode([["Hello there."]]).inputs, past_key_values=cache)
        held = [layer.keys.clone() for layer in cache.layers]
        bad = inputs(do_normalize=False)
        del bad["attention_mask"]
        with pytest.raises(ValueError, match="pixel_values"):
            model(**bad, past_key_values=cache)
        assert (session.prefills_seen, session.prefills_pruned) == (1, 0)
        assert all(
            torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, held, strict=True)
        )
        assert status() == 0
        model(**inputs())  # the session goes on
        assert session.prefills_pruned == 1
    assert snapshot(model) == before


def test_nan_scores_are_raised_by_the_next_prefill() -> None:
    model = build_model(FAMILY)
    layer = model.model.language_model.layers[BASE_CONFIG["late_layer"]]
    weight = layer.self_attn.q_proj.weight
    healthy = weight.clone()
    with prune(model) as session:
        weight[3, 5] = float("nan")
        model(**inputs())  # nobody has asked
        assert session.prefills_pruned == 1
        assert status() != 0
        weight.copy_(healthy)
        with pytest.raises(ValueError, match="scores without NaN"):
            model(**inputs())
        assert session.prefills_pruned == 1
        model(**inputs())
        assert session.prefills_pruned == 2
    check_status(DEVICE)
