"""The two ways the encoder's output, and with it the entropies, reach the forward."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLModel

import erase
from tests.hf.cases import Case, by_name
from tests.hf.common import assert_outcomes, assert_reports, limits, run_oracle
from tests.models import FAMILIES, shared_model
from tests.prompts import chat_processor

HAS_ENCODER_OUTPUTS = "mm_encoder_outputs" in inspect.signature(Qwen2_5_VLModel.forward).parameters
"""Newer transformers encode images in generate(), before the forward."""


class Route:
    """Whether ``get_image_features`` runs inside or before the forward of the base model."""

    def __init__(self, model: Any) -> None:
        self.base, self.taken, self._inside = model.model, [], 0

    def __enter__(self) -> Route:
        visual = self.base.visual
        self._handles = [
            self.base.register_forward_pre_hook(self._enter),
            self.base.register_forward_hook(self._leave),
            visual.register_forward_pre_hook(self._encode),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def _encode(self, *_: Any) -> None:
        self.taken.append("forward" if self._inside else "generate")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch", "direct", "turns_image"])
def test_route(name: str, family: str) -> None:
    case: Case = by_name(name)
    under_generate = case.call.__name__ != "direct"
    route = "generate" if under_generate and HAS_ENCODER_OUTPUTS else "forward"
    want, oracle = run_oracle(case, family)
    model = shared_model(family)
    session = erase.prune(model, erase.EraseConfig(**case.settings()), chat_processor())
    with torch.no_grad(), session, Route(model) as taken:
        got = case.call(model, case.build())
    assert taken.taken == [route] * len(case.layers)
    limit = limits(case, family)
    assert_reports(list(session.reports), oracle.turns, kv=got.cache is not None, limit=limit)
    assert_outcomes(got, want, oracle, limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_keyword_and_positional_pixels(family: str) -> None:
    """Models call ``get_image_features`` either way; its signature must survive the session."""
    case, model = by_name("direct"), shared_model(family)
    inputs = case.build()[0].inputs
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    before = inspect.signature(model.model.get_image_features)
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**case.settings())):
        assert inspect.signature(model.model.get_image_features) == before
        a = model.model.get_image_features(pixels, grid)
        b = model.model.get_image_features(image_grid_thw=grid, pixel_values=pixels)
        c = model.get_image_features(pixels, grid)
    for other in (b, c):
        assert torch.equal(torch.cat(other.pooler_output), torch.cat(a.pooler_output))
