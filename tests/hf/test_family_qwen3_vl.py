"""What is special to Qwen3-VL: DeepStack planes follow the kept tokens; its published queries."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import erase
from erase.hf.families import FAMILIES as ADAPTERS
from erase.hf.families import Statistics
from tests.families import qwen2_vl
from tests.families.qwen3_vl import FAMILIES, TinyQwen3
from tests.hf.calls import direct_labels, direct_loop, greedy, text_labels
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import (
    CLEAR_MARGIN,
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
)
from tests.oracle import Oracle
from tests.prompts import CLIP_MEAN, CLIP_STD, Prompt, noise, page, photo

DENSE, EXPERTS = FAMILIES
LAST_LAYER = 5
GRADIENT_TOLERANCE = 1e-4
"""Relative to the largest gradient of a tensor, fp32."""
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def settings(**fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **fields})


@functools.cache
def ragged(family: TinyQwen3) -> list[Prompt]:
    """One complex row, one simple row of two images, a row of text, a complex row of two."""
    rows = [
        [photo(5, 6), "Describe the image."],
        ["Compare: ", page(6, 7), " and ", page(3, 4, seed=3), " What is the difference?"],
        ["How many people are in the picture?"],
        [page(5, 5, seed=5), noise(2, 3), " Answer with yes or no."],
    ]
    return [family.encode(rows)]


def compare(family: TinyQwen3, call: Any, config: erase.EraseConfig) -> erase.Session:
    """Pruned and masked runs agree, and differ clearly from the stock model's."""
    model, eager, prompts = family.model(), family.model("eager"), ragged(family)
    with torch.no_grad():
        stock = call(model, prompts)
        with Oracle(eager, config, prompts[0].images) as oracle:
            want = call(eager, prompts)
        with erase.prune(model, config) as session:
            got = call(model, prompts)
    margins = [row.margin for row in oracle.turns[0].rows if row.margin is not None]
    assert min(margins) > CLEAR_MARGIN, "choose other pictures"
    assert_reports(list(session.reports), oracle.turns, kv=got.cache is not None)
    assert_outcomes(got, want, oracle)
    assert_cache(got, oracle)
    assert differs_clearly(got, stock, oracle)
    return session


@pytest.mark.parametrize("stage1", [True, False], ids=["both", "stage2"])
@pytest.mark.parametrize("layers", [(0, 0), (0, 1), (1, 2), (0, 3), (2, 4)], ids=str)
def test_planes_follow_the_kept_tokens(layers: tuple[int, int], stage1: bool) -> None:
    """Stage 2 before, at and behind the last layer that gets a plane; other layers in each row."""
    early, late = layers
    config = settings(early_layer=early, late_layer=late, stage1=stage1)
    session = compare(DENSE, direct_loop, config)
    assert [row.layer for row in session.report.rows] == [late, early, None, late]


def test_planes_of_experts() -> None:
    compare(EXPERTS, direct_loop, settings(early_layer=0, late_layer=1))


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (3, LAST_LAYER)], ids=str)
@every_family
def test_published_queries(family: TinyQwen3, layers: tuple[int, int]) -> None:
    """Of the layer's output, DeepStack included, also where the last norm follows."""
    early, late = layers
    compare(family, greedy, settings(early_layer=early, late_layer=late, query="released"))


@pytest.mark.parametrize("query", ["exact", "released"])
@every_family
def test_keeping_everything_is_identical(family: TinyQwen3, query: str) -> None:
    """Identity gathers through both stages, before the last plane is added."""
    model = family.model()
    config = settings(keep_ratio=1.0, force_gathers=True, early_layer=0, late_layer=1, query=query)
    with torch.no_grad():
        stock = greedy(model, ragged(family))
        with erase.prune(model, config) as session:
            got = greedy(model, ragged(family))
    assert [row.layer for row in session.report.rows] == [1, 0, None, 1]
    assert all(torch.equal(a, b) for a, b in zip(got.logits, stock.logits, strict=True))


def test_nothing_left() -> None:
    """Every visual token goes after layer 0: later planes are empty."""
    config = settings(early_layer=0, late_layer=0, keep_ratio=0.01)
    model, eager, prompts = DENSE.model(), DENSE.model("eager"), ragged(DENSE)
    with torch.no_grad():
        with Oracle(eager, config, prompts[0].images) as oracle:
            want = greedy(eager, prompts)
        with erase.prune(model, config) as session:
            got = greedy(model, prompts)
    assert [len(row.kept) for row in session.report.rows] == [0] * 4
    assert_outcomes(got, want, oracle)


@every_family
def test_training_step(family: TinyQwen3) -> None:
    """Loss and gradients are those of the masked model, those of the vision tower included."""
    config, prompts = settings(early_layer=0, late_layer=1), ragged(family)

    def train(model: Any) -> dict[str, torch.Tensor]:
        model.requires_grad_(True)
        outcome = direct_labels(model, prompts)
        outcome.loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": outcome.loss.detach()[None], **grads}

    masked, pruned = family.build("eager"), family.build()
    with Oracle(masked, config, prompts[0].images):
        want = train(masked)
    with erase.prune(pruned, config):
        got = train(pruned)
    assert got.keys() == want.keys()
    assert any("deepstack_merger_list.2" in name for name in want)
    for name, gradient in want.items():
        limit = GRADIENT_TOLERANCE * float(gradient.abs().max())
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=limit, msg=name)


def test_load_balancing_loss() -> None:
    """It counts the rows of the mask in every layer, so it is refused before anything runs."""
    model, prompt = EXPERTS.model(), ragged(EXPERTS)[0]
    labels = text_labels(prompt, model.config.image_token_id)
    session = erase.prune(model, settings())
    with session, torch.no_grad(), pytest.raises(ValueError, match="output_router_logits"):
        model(**prompt.inputs, labels=labels, output_router_logits=True)
    with torch.no_grad():
        assert model(**prompt.inputs, labels=labels, output_router_logits=True).aux_loss > 0


@pytest.mark.parametrize("family", [*FAMILIES, *qwen2_vl.FAMILIES], ids=str)
def test_bf16_pixels(family: Any) -> None:
    """With 0.5/0.5 statistics bf16 loses no level, and the report does not call it approximate."""
    prompt = family.encode([[photo(5, 6), "Describe the image."]])
    inputs = {**prompt.inputs, "pixel_values": prompt.inputs["pixel_values"].bfloat16()}
    with torch.no_grad(), erase.prune(family.model(), settings()) as session:
        family.model()(**inputs)
    exact = isinstance(family, TinyQwen3)
    assert session.report.approximate_pixels is not exact
    if exact:
        entropy = session.report.rows[0].images[0].entropy.cpu().numpy()
        np.testing.assert_array_equal(entropy, prompt.images[0].entropy)


STATISTICS = {
    "half": ((0.5,) * 3, (0.5,) * 3, 255.0),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0),
    "clip": (CLIP_MEAN, CLIP_STD, 255.0),
    "not normalised": ((0.0,) * 3, (1.0,) * 3, 255.0),
    "levels": ((0.0,) * 3, (1.0,) * 3, 1.0),
    "wide": ((0.5,) * 3, (0.2,) * 3, 255.0),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_what_is_exact_in_bfloat16(name: str) -> None:
    """Every number that rounds to a value of bf16 must still be nearest to its own level."""
    mean, std, scale = STATISTICS[name]
    worst = 0.0
    for m, s in zip(mean, std, strict=True):
        value = (torch.arange(256, dtype=torch.float64) / scale - m) / s
        error = (value.bfloat16().double() - value).abs()
        worst = max(worst, float((error * s * scale).max()))
    exact = Statistics(mean, std, scale).exact_in_bfloat16
    # Levels themselves are exact too, but not by the bound.
    assert exact == (name not in ("clip", "levels"))
    assert not exact or worst < 0.5


def test_statistics_of_the_family() -> None:
    adapter = next(a for a in ADAPTERS if "qwen3_vl" in a.model_types)
    assert Statistics(adapter.pixel_mean, adapter.pixel_std).exact_in_bfloat16
