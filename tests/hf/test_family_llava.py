"""LLaVA with towers with and without a class token, and with a Pixtral tower's padded images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase.hf.families._tiles import with_leading_token
from tests.families.llava import FAMILIES, OTHERS, TinyLlava, pixtral_processor, processor
from tests.hf.calls import direct, greedy
from tests.hf.cases import BASE_CONFIG
from tests.hf.families import (
    ROUTES,
    check,
    check_pixels,
    check_route,
    check_statistics_refused,
    check_waits,
    one,
    ragged,
    run_pruned,
)
from tests.prompts import noise, photo

CLIP, PIXTRAL = FAMILIES
FULL = OTHERS[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route: str, attention: str) -> None:
    check_route(CLIP, route, attention)


@pytest.mark.parametrize("route", ["greedy", "turns_new_ids"])
def test_routes_of_pixtral(route: str) -> None:
    check_route(PIXTRAL, route, "sdpa")


@pytest.mark.parametrize("family", OTHERS, ids=repr)
def test_towers_and_strategies(family: TinyLlava) -> None:
    """Statistics are those of the tower; a class token is always kept and never counted."""
    check(family, greedy, lambda: ragged(family))


def test_a_class_token_is_kept_whatever_the_budget() -> None:
    got = check(FULL, direct, lambda: one(FULL), keep_ratio=0.05)
    prompt = one(FULL)[0]
    row = got.reports[0].rows[0]
    pads = (prompt.inputs["input_ids"][0] == FULL.model().config.image_token_id).nonzero()
    firsts = {int(pads[0]), int(pads[50])}
    assert row.visual_tokens == 98
    assert len(row.kept) == int(98 * 0.05)
    assert not firsts & set(row.kept.tolist())
    assert bool(got.outcome.logits[0][0, sorted(firsts)].any(-1).all())


@pytest.mark.parametrize(("model", "given"), [(CLIP, "full"), (FULL, "default")], ids=repr)
def test_the_strategy_of_a_call(model: TinyLlava, given: str) -> None:
    """An argument goes before the model's configuration."""
    other = FULL if given == "full" else CLIP
    want = run_pruned(other, direct, one(other))
    prompt = one(other)[0]
    prompt.inputs["vision_feature_select_strategy"] = given
    got = run_pruned(model, direct, [prompt])
    assert got.reports[0].rows[0].kept.tolist() == want.reports[0].rows[0].kept.tolist()
    assert torch.equal(got.outcome.logits[0], want.outcome.logits[0])


def test_padding_is_no_cell() -> None:
    """Images of a batch are padded to the largest after normalisation."""
    wide, tall = noise(2, 6)[:50], photo(4, 2)
    check(PIXTRAL, greedy, lambda: [PIXTRAL.encode([[wide, " and ", tall, "Describe."]])])


def test_pixtral_without_sizes() -> None:
    """The tower takes whole tensors then, and packs the tokens of all images into one feature."""

    def build() -> list:
        prompt = PIXTRAL.encode([[photo(4, 4), " and ", photo(4, 4, 20, 20), "Describe."]])
        del prompt.inputs["image_sizes"]
        return [prompt]

    got = check(PIXTRAL, greedy, build)
    assert [len(image.entropy) for image in got.reports[0].rows[0].images] == [64, 64]


def test_sizes_beyond_the_pixels_are_refused() -> None:
    prompt = one(PIXTRAL)[0]
    prompt.inputs["image_sizes"] = prompt.inputs["image_sizes"] * 2
    with pytest.raises(ValueError, match=r"image_sizes: .* reaches out of pixel_values"):
        run_pruned(PIXTRAL, greedy, [prompt])


@pytest.mark.parametrize(
    ("tokens", "strategy"), [([5], "default"), ([3], "full"), ([6], "full"), ([4, 4], "full")]
)
def test_other_numbers_of_tokens_are_refused(tokens: list[int], strategy: str) -> None:
    features = [torch.zeros(n, 2) for n in tokens]
    with pytest.raises(ValueError, match=r"images of \[4\] cells, but the encoder made"):
        with_leading_token(torch.zeros(4), features, [4], strategy)


def test_pixels_of_another_rank_are_refused() -> None:
    prompt = one(CLIP)[0]
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"][None]
    with pytest.raises(ValueError, match=r"pixel_values: expected shape \[tiles, C, H, W\]"):
        run_pruned(CLIP, greedy, [prompt])


@pytest.mark.parametrize(
    ("family", "given"),
    [(CLIP, None), (CLIP, processor()), (PIXTRAL, None), (PIXTRAL, pixtral_processor())],
    ids=["assumed", "given", "pixtral_assumed", "pixtral_given"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixel_types(dtype: torch.dtype, family: TinyLlava, given: object) -> None:
    check_pixels(family, dtype, given)


def test_pixels_that_were_not_normalised() -> None:
    plain = processor(do_normalize=False)
    prompt = one(CLIP)[0]
    images = [photo(5, 6), photo(3, 5)]
    prompt.inputs["pixel_values"] = plain(images, return_tensors="pt")["pixel_values"]
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(CLIP.model().device)
    report = run_pruned(CLIP, greedy, [prompt], processor=plain).reports[0]
    want = CLIP.encode([images]).images
    for image, picture in zip(report.rows[0].images, want, strict=True):
        np.testing.assert_array_equal(image.entropy.cpu().numpy(), picture.entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_statistics_are_refused(dtype: torch.dtype) -> None:
    check_statistics_refused(CLIP, processor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3), dtype)


def test_a_sliding_window_without_layer_types_is_refused() -> None:
    """Mistral's window holds in every layer."""

    class Mistral(TinyLlava):
        def text(self) -> dict:
            return {**super().text(), "model_type": "mistral", "sliding_window": 16}

        def config(self, text: dict) -> object:
            config = super().config(text)
            assert config.text_config.model_type == "mistral"
            return config

    with pytest.raises(ValueError, match="sliding-window layers are not supported"):
        erase.prune(Mistral("llava_mistral").build(), erase.EraseConfig(**BASE_CONFIG))


@pytest.mark.parametrize(("family", "most"), [(CLIP, 1), (PIXTRAL, 2)], ids=repr)
def test_waits_of_a_prefill(family: TinyLlava, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, and image sizes where there are some."""
    check_waits(family, most, monkeypatch)
