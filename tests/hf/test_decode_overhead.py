"""What an open session adds to a decode step, counted in calls instead of timed.

A Python call costs about 0.05 to 0.1 microseconds and more with what it does; a layer whose hooks
run costs some twenty of them. ``python -m bench.decode`` measures the time.
"""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import StaticCache

import erase
from tests.hf.cases import BASE_CONFIG
from tests.models import FAMILIES, build_model
from tests.prompts import chat_processor, encode, page, photo

STEPS = 3
PER_LAYER = 3
"""Calls that each layer may cost: the shadowed attention function, and asking for a prefill."""
PER_STEP = 150
"""Calls that a step may cost beside those of its layers, whatever its mask."""


def step_calls(model: Any, rows: list[list[Any]], static: bool) -> float:
    """Python and builtin calls of one decode step, the fewest of a few."""
    inputs = encode(rows).inputs
    cache = None
    if static:
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    mask = inputs["attention_mask"]
    counts: list[int] = []
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        calls[event] += 1

    with torch.no_grad():
        cache = model(**inputs, past_key_values=cache).past_key_values
        for _ in range(STEPS):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            position = mask.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
            step = {
                "input_ids": torch.full_like(mask[:, :1], 300),
                "attention_mask": mask if len(rows) > 1 else None,
                "position_ids": position[None].expand(3, -1, -1),
            }
            calls.clear()
            sys.setprofile(count)
            try:
                model(**step, past_key_values=cache)
            finally:
                sys.setprofile(None)
            counts.append(calls["call"] + calls["c_call"])
    return min(counts)


def added_calls(family: str, layers: int, rows: list[list[Any]], static: bool = False) -> float:
    model = build_model(family, num_hidden_layers=layers)
    stock = step_calls(model, rows, static)
    settings = {**BASE_CONFIG, "early_layer": 0, "late_layer": 0}
    with erase.prune(model, erase.EraseConfig(**settings), chat_processor()):
        return step_calls(model, rows, static) - stock


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_a_step(family: str, static: bool) -> None:
    """No layer has hooks while decoding, so more layers cost hardly more."""
    rows = [[photo(5, 6), "Describe the image."]]
    few, many = (added_calls(family, layers, rows, static) for layers in (2, 12))
    assert (many - few) / 10 <= PER_LAYER
    assert few - 2 * PER_LAYER <= PER_STEP
    assert few > 0, "nothing was counted"


@pytest.mark.parametrize("static", [False, True])
def test_calls_of_a_ragged_step(static: bool) -> None:
    rows = [[photo(5, 6), "Describe the image."], [page(6, 7), "Read the page, please."]]
    few, many = (added_calls(FAMILIES[0], layers, rows, static) for layers in (2, 12))
    assert (many - few) / 10 <= PER_LAYER
    assert few - 2 * PER_LAYER <= PER_STEP
