"""What is special to hybrid models: recurrent layers between those with attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import erase
from tests.families._base import TinyFamily
from tests.families.qwen3_5 import FAMILIES, LAYER_TYPES
from tests.hf.calls import Outcome, direct, direct_loop, text_labels
from tests.hf.cases import BASE_CONFIG, NEXT_USER
from tests.hf.common import LOGIT_TOLERANCE, assert_outcomes, differs_clearly, snapshot
from tests.hf.conversations import (
    ROWS,
    filmed,
    image_after_text,
    image_turns,
    padded_text_turn,
    padded_turn,
    ragged,
    text_turn,
    turns,
)
from tests.oracle import Oracle
from tests.prompts import Prompt, page, photo

DENSE, EXPERTS = FAMILIES
L = BASE_CONFIG["late_layer"]
IS_FULL = [kind == "full_attention" for kind in LAYER_TYPES]
CONFIG = erase.EraseConfig(**BASE_CONFIG)


def compared(
    family: TinyFamily,
    prompts: list[Prompt],
    call: Callable[[Any, list[Prompt]], Outcome],
    config: erase.EraseConfig = CONFIG,
) -> None:
    """A pruned run equals the oracle's, is clearly not the stock model's, and is reported right."""
    model, eager = family.model(), family.model("eager")
    images = [image for prompt in prompts for image in prompt.images]
    before = snapshot(model)
    with torch.no_grad():
        stock = call(model, prompts)
        with Oracle(eager, config, images) as oracle:
            want = call(eager, prompts)
        with erase.prune(model, config) as session:
            got = call(model, prompts)
    assert snapshot(model) == before
    assert not oracle.unused_images
    for report, turn in zip(session.reports, oracle.turns, strict=True):
        assert [row.layer for row in report.rows] == [row.layer for row in turn.rows]
        assert [row.kept.tolist() for row in report.rows] == [row.kept for row in turn.rows]
        if report.kv_lengths:
            held = [[n if full else 0 for full in IS_FULL] for n in turn.valid_after]
            assert report.kv_lengths == (held if len(held) > 1 else held[0])
    assert_outcomes(got, want, oracle)
    assert differs_clearly(got, stock, oracle)


def rows_of(outcome: Outcome, row: int) -> list[torch.Tensor]:
    return [step[row] for step in outcome.logits]


@pytest.mark.parametrize(
    "build", [ragged, text_turn, image_turns, padded_turn, padded_text_turn, image_after_text]
)
def test_turns(build: Callable[[TinyFamily], list[Prompt]]) -> None:
    compared(DENSE, build(DENSE), functools.partial(turns, DENSE))


@pytest.mark.parametrize("call", [direct, direct_loop])
def test_experts(call: Callable[[Any, list[Prompt]], Outcome]) -> None:
    compared(EXPERTS, ragged(EXPERTS), call)


@pytest.mark.parametrize(
    "fields",
    [
        {"stage1": False},
        {"early_layer": 3, "late_layer": 5},
        {"keep_ratio": 0.03},
        # Layers after which nothing is pruned may be any.
        {"stage2": False, "early_layer": 0, "late_layer": 2},
    ],
    ids=str,
)
def test_settings(fields: dict[str, Any]) -> None:
    compared(DENSE, ragged(DENSE), direct_loop, CONFIG.replace(**fields))


def test_rows_are_as_if_alone() -> None:
    """Rows of other lengths beside it change nothing for a row: no state sees empty slots."""
    parts = [row for row in ROWS if len(row) > 1]
    later = [[page(4, 5, seed=2), " And?"], [photo(4, 5, 20, 10), " Where is it?"], ["Thanks."]]

    def prompts(rows: slice) -> list[Prompt]:
        return [DENSE.encode(parts[rows]), DENSE.encode(later[rows], head=NEXT_USER)]

    model = DENSE.model()
    with torch.no_grad(), erase.prune(model, CONFIG):
        together = turns(DENSE, model, prompts(slice(3)))
        for row in range(3):
            alone = turns(DENSE, model, prompts(slice(row, row + 1)))
            for got, want in zip(rows_of(together, row), rows_of(alone, 0), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=LOGIT_TOLERANCE)


def test_states_keep_what_they_absorbed() -> None:
    """After stage 2 at layer 3 the states of layers 0 and 2 are those of stage 1 alone."""
    model, prompt = DENSE.model(), DENSE.encode(ROWS[:1])
    with torch.no_grad(), erase.prune(model, CONFIG) as session:
        both = model(**prompt.inputs).past_key_values
        assert session.report.rows[0].layer == L
        with session.override(stage2=False):
            first = model(**prompt.inputs).past_key_values
    same = [
        torch.equal(a.recurrent_states[0], b.recurrent_states[0])
        for a, b in zip(both.layers[::2], first.layers[::2], strict=True)
    ]
    assert same == [True, True, False]


@pytest.mark.parametrize("build", [ragged, padded_turn])
def test_identity(build: Callable[[TinyFamily], list[Prompt]]) -> None:
    config = CONFIG.replace(keep_ratio=1.0, force_gathers=True)
    model, prompts = DENSE.model(), build(DENSE)
    with torch.no_grad():
        stock = turns(DENSE, model, prompts)
        with erase.prune(model, config) as session:
            got = turns(DENSE, model, prompts)
    assert session.prefills_pruned == sum("pixel_values" in prompt.inputs for prompt in prompts)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, stock.logits, strict=True))


@pytest.mark.parametrize(
    ("field", "layer", "nearest"),
    [("early_layer", 0, "1"), ("late_layer", 4, "3 and 5"), ("late_layer", 2, "1 and 3")],
)
def test_linear_layers_are_refused(field: str, layer: int, nearest: str) -> None:
    config, model = CONFIG.replace(**{field: layer}), DENSE.model()
    before = snapshot(model)
    message = f"{field}: layer {layer} is a linear-attention layer.*layers: {nearest}$"
    with pytest.raises(ValueError, match=message):
        erase.prune(model, config)
    assert snapshot(model) == before
    with (
        erase.prune(model, config.replace(stage2=False)) as session,
        pytest.raises(ValueError, match=message),
        session.override(stage2=True),
    ):
        pass
    erase.prune(model, config.replace(keep_ratio=None)).remove()


@dataclass(frozen=True)
class Careless(erase.EraseConfig):
    """A method that does not ask which layers have attention."""

    def validate(self, model: Any) -> None:
        pass


def test_plan_on_a_linear_layer_is_refused() -> None:
    model, prompt = DENSE.model(), DENSE.encode(ROWS[:1])
    config = Careless(**{**BASE_CONFIG, "late_layer": 2})
    with torch.no_grad(), erase.prune(model, config) as session:
        with pytest.raises(ValueError, match=r"row 0 .* after layer 2, .* \[1, 3, 5\]"):
            model.generate(**prompt.inputs, max_new_tokens=2)
        assert (session.prefills_seen, session.prefills_pruned) == (1, 0)


def test_beams() -> None:
    prompt = DENSE.encode(ROWS[:2])
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    model, eager = DENSE.model(), DENSE.model("eager")
    images = [image for image in prompt.images[:1] for _ in range(3)]
    images += prompt.images[1:] * 3
    with torch.no_grad():
        stock = model.generate(**prompt.inputs, **options)
        with Oracle(eager, CONFIG, images):
            want = eager.generate(**prompt.inputs, **options)
        with erase.prune(model, CONFIG):
            got = model.generate(**prompt.inputs, **options)
    assert torch.equal(got, want)
    assert not torch.equal(got, stock)


def _gradients(model: Any, prompt: Prompt, **options: Any) -> list[torch.Tensor]:
    weights = [
        layer.linear_attn.in_proj_qkv.weight
        for layer in model.base_model.language_model.layers[::2]
    ]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        result = model(
            **prompt.inputs, labels=text_labels(prompt, model.config.image_token_id), **options
        )
        return list(torch.autograd.grad(result.loss, weights))
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def test_training() -> None:
    """Gradients are the oracle's, with the cache that training keeps by default and without."""
    prompt = DENSE.encode(ROWS)
    model, eager = DENSE.model(), DENSE.model("eager")
    stock = _gradients(model, prompt)
    with Oracle(eager, CONFIG, prompt.images):
        want = _gradients(eager, prompt, use_cache=False)
    with erase.prune(model, CONFIG):
        runs = [_gradients(model, prompt, use_cache=cached) for cached in (True, False)]
    for got in runs:
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert all((a - b).abs().max() > 0.1 * a.abs().max() for a, b in zip(want, stock, strict=True))


def test_videos_pass_through() -> None:
    compared(DENSE, [filmed(DENSE, *ROWS[0])[0]], functools.partial(turns, DENSE))


def test_videos_are_pruned() -> None:
    """One plan for all slices of a video."""
    prompt, film = filmed(DENSE, "Describe the film.")
    model, eager = DENSE.model(), DENSE.model("eager")
    oracle = Oracle(eager, CONFIG, [film])
    ids = {"image_token_id": model.config.video_token_id}
    oracle.model = SimpleNamespace(base_model=eager.base_model, config=SimpleNamespace(**ids))
    with torch.no_grad():
        stock = turns(DENSE, model, [prompt])
        with oracle:
            want = turns(DENSE, eager, [prompt])
        with erase.prune(model, CONFIG, videos=True) as session:
            got = turns(DENSE, model, [prompt])
    assert session.report.rows[0].kept.tolist() == oracle.turns[0].rows[0].kept
    assert_outcomes(got, want, oracle)
    assert differs_clearly(got, stock, oracle)
