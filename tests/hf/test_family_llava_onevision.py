"""LLaVA-OneVision: shrunk grids, prompts with several images, and videos that pass through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionImageProcessor

import erase
from tests.edges_oracle import cell_edges
from tests.families._base import IDS
from tests.families.llava_onevision import (
    FAMILIES,
    TILE,
    processor,
    truth,
    truth_of_several,
)
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
    run_pruned,
)
from tests.hf.place import DEVICE
from tests.hf.test_family_llava_next import edges_of, texture
from tests.prompts import Prompt, noise, page, photo

FAMILY = FAMILIES[0]
SHRUNK = [(124, 124), (124, 186), (100, 124), (124, 170), (115, 119), (110, 186)]
WHOLE = [(62, 62), (62, 124), (124, 62), (20, 150), (150, 20), (33, 47), (60, 61)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route: str, attention: str) -> None:
    check_route(FAMILY, route, attention)


@pytest.mark.parametrize("sizes", [SHRUNK, WHOLE, SHRUNK + WHOLE], ids=["shrunk", "whole", "both"])
def test_tokens_of_any_size(sizes: list[tuple[int, int]]) -> None:
    """Entropies of shrunk grids are blends, rounded once: bit for bit those of float64 weights."""
    images = [texture(*size) for size in sizes]
    inputs = processor()(images, return_tensors="pt").to(DEVICE)
    model = FAMILY.model()
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG)):
        output = model.base_model.get_image_features(**inputs)
    for image, part, got in zip(images, output.pooler_output, output["erase_entropy"], strict=True):
        want = truth(image)
        assert got.candidates.tolist() == want.candidates
        assert len(part) == len(want.candidates)
        np.testing.assert_array_equal(got.entropy.cpu().numpy(), want.entropy)
        assert got.entropy.dtype == torch.float32


def test_edges_of_any_size() -> None:
    """Of the images without their bars, blended like entropies."""
    images = [texture(*size) for size in SHRUNK + WHOLE]
    inputs = processor()(images, return_tensors="pt").to(DEVICE)
    for image, got in zip(images, edges_of(FAMILY, inputs), strict=True):
        np.testing.assert_array_equal(got, truth(image, cell_edges).entropy)


def several() -> list[Prompt]:
    """One row with an image in tiles, one without, one with two images of one tile each."""
    groups = [[photo(4, 6)], [page(6, 4), photo(3, 5)]]
    rows = [
        [groups[0][0], "Describe the image."],
        ["How many people are in the picture?"],
        ["Compare: ", groups[1][0], " and ", groups[1][1], " briefly."],
    ]
    tensors = dict(processor()(groups, return_tensors="pt"))
    truths = [truth(groups[0][0]), *map(truth_of_several, groups[1])]

    class Grouped(type(FAMILY)):
        def pictures(self, images: list) -> tuple:
            return tensors, truths

    return [Grouped().encode(rows)]


@pytest.mark.parametrize("call", [greedy, direct])
def test_prompts_with_several_images(call: object) -> None:
    prompt = several()[0]
    assert prompt.inputs["batch_num_images"].tolist() == [1, 2]
    got = check(FAMILY, call, several)
    assert [len(image.entropy) for image in got.reports[0].rows[2].images] == [16, 16]


def with_video() -> list[Prompt]:
    """An image and two frames; a frame has 2x2 tokens, a video one more."""
    prompt = FAMILY.encode([[photo(4, 6), "Describe the image and the film: ", "?"]])
    frames = np.stack([noise(3, 3, seed=i)[:TILE, :TILE] for i in range(2)]).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(frames.astype(np.float32)) / 127.5 - 1
    ids = prompt.inputs["input_ids"]
    at = ids.shape[1] - 9
    video = torch.full((1, 2 * 4 + 1), IDS["video_token_id"], device=DEVICE)
    prompt.inputs["input_ids"] = torch.cat([ids[:, :at], video, ids[:, at:]], dim=1)
    prompt.inputs["attention_mask"] = torch.ones_like(prompt.inputs["input_ids"])
    prompt.inputs["pixel_values_videos"] = pixels[None].to(DEVICE)
    return [prompt]


@pytest.mark.parametrize("call", [greedy, direct])
def test_videos_pass_through(call: object) -> None:
    got = check(FAMILY, call, with_video)
    assert {image.modality for image in got.reports[0].rows[0].images} == {"image"}


def test_pruning_videos_is_refused() -> None:
    with pytest.raises(ValueError, match="not supported for llava_onevision"):
        erase.prune(FAMILY.model(), erase.EraseConfig(**BASE_CONFIG), videos=True)


def test_the_limit_of_a_call_where_the_model_heeds_it() -> None:
    """``get_image_features(vision_aspect_ratio=)`` packs, and so counts, by its own limit."""
    image = texture(124, 124)
    inputs = processor()([image], return_tensors="pt").to(DEVICE)
    model = FAMILY.model()
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG)):
        output = model.base_model.get_image_features(**inputs, vision_aspect_ratio="anyres_max_9")
    (got,) = output["erase_entropy"]
    assert got.tokens == len(output.pooler_output[0]) == 16 + 8 * 9
    assert len(got.entropy) == 16 + 64


@pytest.mark.parametrize("given", [None, processor()], ids=["assumed", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixel_types(dtype: torch.dtype, given: object) -> None:
    check_pixels(FAMILY, dtype, given, exact_in_bfloat16=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_statistics_are_refused(dtype: torch.dtype) -> None:
    """The image processor's class has CLIP's by default, the released checkpoints have not."""
    check_statistics_refused(FAMILY, LlavaOnevisionImageProcessor(), dtype)


def test_later_images_of_a_row_are_read() -> None:
    """Blank pictures rank below a photograph in every row."""
    report = run_pruned(FAMILY, greedy, one(FAMILY)).reports[0]
    first, second = report.rows[0].images
    assert first.median > second.median


def test_waits_of_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, and sizes and numbers of the images."""
    check_waits(FAMILY, 3, monkeypatch)
