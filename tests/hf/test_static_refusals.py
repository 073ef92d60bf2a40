"""What is refused on static caches, before anything changes: several turns, and other layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.hf.cases import by_name
from tests.hf.static import new_cache, session_of
from tests.models import TEXT_LAYERS, shared_model


def state(cache: Any) -> list[Any]:
    tensors = [t.clone() for x in cache.layers for t in (x.keys, x.values, x.cumulative_length)]
    return [*tensors, cache.__dict__.get("_erase"), type(cache)]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b for a, b in pairs)


@pytest.mark.parametrize("turn", ["image", "text", "generate", "generate_text"])
def test_second_turn_is_refused(turn: str) -> None:
    """On a pruned static cache, before anything changes; single steps go on."""
    case, model = by_name("greedy_photo"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    cache = new_cache(model, 300)
    text = {"input_ids": torch.full_like(inputs["input_ids"][:, :3], 300)}
    with torch.no_grad(), session_of(model, case) as session:
        model(**inputs, past_key_values=cache)
        before = state(cache)
        call = partial(model.generate, max_new_tokens=2) if "generate" in turn else model
        given = text if "text" in turn else inputs
        with pytest.raises(ValueError, match="several turns on a StaticCache"):
            call(**given, past_key_values=cache)
        assert unchanged(before, state(cache))
        assert session.prefills_pruned == 1
        model(input_ids=text["input_ids"][:, :1], past_key_values=cache)
        assert not unchanged(before, state(cache))


def test_filled_cache_is_refused() -> None:
    """Text went first, which is a turn too; the cache and the count say so."""
    case, model = by_name("greedy_photo"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    cache = new_cache(model, 300)
    with torch.no_grad(), session_of(model, case) as session:
        model(input_ids=torch.full_like(inputs["input_ids"][:, :3], 300), past_key_values=cache)
        before = state(cache)
        inputs = {**inputs, "attention_mask": None}
        with pytest.raises(ValueError, match="several turns on a StaticCache"):
            model(**inputs, past_key_values=cache)
        assert unchanged(before, state(cache))
        assert (session.prefills_seen, session.prefills_pruned) == (1, 0)


@pytest.mark.parametrize("implementation", ["offloaded_static", "offloaded", "quantized"])
def test_other_caches_are_refused(implementation: str) -> None:
    case, model = by_name("greedy_photo"), shared_model("qwen2_5_vl")
    with session_of(model, case), pytest.raises(ValueError, match=implementation):
        model.generate(**case.build()[0].inputs, cache_implementation=implementation)


def test_sliding_static_cache_is_refused() -> None:
    """The layers count, not the class of the cache."""
    case, model = by_name("greedy_photo"), shared_model("qwen2_5_vl")
    config = model.config.get_text_config()
    kinds, config.layer_types = config.layer_types, ["sliding_attention"] * TEXT_LAYERS
    window, config.sliding_window = config.sliding_window, 16
    try:
        cache = new_cache(model, 300)
    finally:
        config.layer_types, config.sliding_window = kinds, window
    with session_of(model, case), pytest.raises(ValueError, match="StaticSlidingWindowLayer"):
        model(**case.build()[0].inputs, past_key_values=cache)
