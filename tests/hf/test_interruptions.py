"""An exception in the middle of a forward leaves the model and the session as they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import erase
from erase.hf.current import current_prefill
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import snapshot
from tests.models import build_model, shared_model
from tests.prompts import Prompt, encode, photo

GREEDY = {"max_new_tokens": 3, "do_sample": False}


def config(**fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **fields})


def prompt() -> Prompt:
    return encode([[photo(5, 6), "Describe the image."]])


@pytest.fixture
def model() -> Iterator[Any]:
    """The shared model; whatever a test does to it, it must be as before afterwards."""
    shared = shared_model("qwen2_5_vl")
    before = snapshot(shared)
    yield shared
    assert snapshot(shared) == before


class Interrupted(Exception):
    """Raised by a test inside a forward."""


@pytest.mark.parametrize("where", ["vision", "layer", "layer_after_stage2", "decode", "norm"])
def test_exception_in_the_middle(model: Any, where: str) -> None:
    stack = model.model.language_model
    module, call = {
        "vision": (model.model.visual, 1),
        "layer": (stack.layers[0], 1),
        "layer_after_stage2": (stack.layers[BASE_CONFIG["late_layer"] + 1].mlp, 1),
        "decode": (stack.layers[2], 3),
        "norm": (stack.norm, 1),
    }[where]
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise Interrupted

    with torch.no_grad():
        wanted = model.generate(**prompt().inputs, **GREEDY)
        before = snapshot(model)
        handle = module.register_forward_pre_hook(fail)
        try:
            with pytest.raises(Interrupted), erase.prune(model, config()):
                model.generate(**prompt().inputs, **GREEDY)
        finally:
            handle.remove()
        assert len(calls) == call
        assert snapshot(model) == before
        assert torch.equal(model.generate(**prompt().inputs, **GREEDY), wanted)


def test_session_survives_an_exception(model: Any) -> None:
    case = by_name("greedy_photo")
    stack = model.model.language_model

    def fail(*_: Any) -> None:
        raise Interrupted

    with torch.no_grad():
        plain = model(**encode([["Hello there."]]).inputs).logits
    with torch.no_grad(), erase.prune(model, config()) as session:
        wanted = case.call(model, case.build())
        handle = stack.layers[BASE_CONFIG["late_layer"] + 1].register_forward_pre_hook(fail)
        with pytest.raises(Interrupted):
            case.call(model, case.build())
        handle.remove()
        assert current_prefill() is None  # it would hold the images' tensors
        assert (session.prefills_seen, session.prefills_pruned) == (2, 1)
        text = encode([["Hello there."]]).inputs
        assert torch.equal(model(**text).logits, plain)
        again = case.call(model, case.build())
        assert (session.prefills_seen, session.prefills_pruned) == (3, 2)
    for a, b in zip(again.logits, wanted.logits, strict=True):
        assert torch.equal(a, b)


def test_two_models_share_the_registry(model: Any) -> None:
    """The registry entry stays until the last session is closed; each model prunes for itself."""
    other = build_model("qwen2_vl")
    before = snapshot(other)
    first, second = erase.prune(model, config()), erase.prune(other, config(keep_ratio=0.5))
    model.generate(**prompt().inputs, **GREEDY)
    first.remove()
    other.generate(**prompt().inputs, **GREEDY)
    assert len(first.reports) == len(second.reports) == 1
    assert len(second.report.rows[0].kept) == 15
    second.remove()
    first.remove()  # safe to repeat
    assert snapshot(other) == before
