"""LLaVA-NeXT: which cell each token stands for, whatever the size of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import erase
from tests.edges_oracle import cell_edges
from tests.families.llava_next import CANVASES, FAMILIES, processor, truth
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
from tests.hf.place import DEVICE
from tests.prompts import page, photo

FAMILY = FAMILIES[0]
SIZES = [(56, 112), (112, 56), (112, 112), (20, 150), (150, 20), (90, 100), (100, 61), (33, 47)]
SIZES += [(168, 56), (40, 168), (13, 168), (168, 13), (57, 113), (111, 97), (168, 168)]


def texture(height: int, width: int) -> np.ndarray:
    """Entropies that differ from cell to cell."""
    y, x = np.mgrid[0:height, 0:width]
    random = np.random.default_rng(height * 997 + width).integers(0, 256, (height, width, 3))
    return (random * ((x + 2 * y) / (width + 2 * height))[..., None]).astype(np.uint8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route: str, attention: str) -> None:
    check_route(FAMILY, route, attention)


def test_tokens_of_any_size() -> None:
    """Cells and newlines of images with and without bars to cut off, all in one call.

    The longest have no row or column left in their grid.
    """
    images = [texture(*size) for size in SIZES]
    inputs = processor()(images, return_tensors="pt").to(DEVICE)
    model = FAMILY.model()
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG)):
        output = model.base_model.get_image_features(**inputs)
    assert len({len(part) for part in output.pooler_output}) > 5
    for image, part, got in zip(images, output.pooler_output, output["erase_entropy"], strict=True):
        want = truth(image)
        flags = got.candidates.tolist() if got.candidates is not None else [True] * len(part)
        assert flags == want.candidates
        assert len(part) == len(want.candidates)
        np.testing.assert_array_equal(got.entropy.cpu().numpy(), want.entropy)


def edges_of(family: Any, inputs: Any) -> list[np.ndarray]:
    """What a session measures in the cells of each image."""
    model = family.model()
    config = erase.EraseConfig(**BASE_CONFIG, stage1_score="edges")
    with torch.no_grad(), erase.prune(model, config):
        output = model.base_model.get_image_features(**inputs)
    return [one.edges.cpu().numpy() for one in output["erase_entropy"]]


def test_edges_of_any_size() -> None:
    """Those of the images: a bar beside an image adds none."""
    images = [texture(*size) for size in SIZES]
    inputs = processor()(images, return_tensors="pt").to(DEVICE)
    before = inputs["pixel_values"].clone()
    for image, got in zip(images, edges_of(FAMILY, inputs), strict=True):
        np.testing.assert_array_equal(got, truth(image, cell_edges).entropy)
    assert torch.equal(inputs["pixel_values"], before)


def test_a_bright_image_has_no_edge_where_its_bars_begin() -> None:
    images = [np.full((*size, 3), 200, np.uint8) for size in SIZES]
    inputs = processor()(images, return_tensors="pt").to(DEVICE)
    assert all((got == 0).all() for got in edges_of(FAMILY, inputs))


def different_grids() -> list:
    """Images of three, four and five tiles in one batch: the shorter ones are filled up."""
    rows = [
        [photo(2, 6)[:50], "Describe the image."],
        [page(6, 6), " and ", photo(6, 2), " What is the difference?"],
    ]
    return [FAMILY.encode(rows)]


def test_filled_up_tiles_are_no_cells() -> None:
    prompt = different_grids()[0]
    assert prompt.inputs["pixel_values"].ndim == 5
    assert prompt.inputs["pixel_values"].shape[1] == 5
    assert bool((prompt.inputs["pixel_values"][0, 4:] == 0).all())
    check(FAMILY, greedy, different_grids)


def stacked(prompt: Any) -> Any:
    """The same tiles as one 4-D tensor without filling."""
    model = FAMILY.model()
    pixels = prompt.inputs["pixel_values"]
    held = [image[: int((image != 0).flatten(1).any(1).sum())] for image in pixels]
    assert len(torch.cat(held)) < pixels.shape[0] * pixels.shape[1]
    prompt.inputs["pixel_values"] = torch.cat(held).to(model.device)
    return prompt


def test_tiles_in_one_tensor() -> None:
    want = run_pruned(FAMILY, direct, different_grids())
    got = run_pruned(FAMILY, direct, [stacked(different_grids()[0])])
    assert torch.equal(got.outcome.logits[0], want.outcome.logits[0])
    for a, b in zip(got.reports[0].rows, want.reports[0].rows, strict=True):
        assert a.kept.tolist() == b.kept.tolist()


def test_tiles_that_sizes_do_not_ask_for_are_refused() -> None:
    prompt = stacked(different_grids()[0])
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"][1:]
    with pytest.raises(ValueError, match=r"pixel_values: \d+ tiles, but image_sizes ask for \["):
        run_pruned(FAMILY, greedy, [prompt])


def test_newlines_are_kept_whatever_the_budget() -> None:
    """None of them is chosen, counted, or asks."""
    got = check(FAMILY, greedy, lambda: ragged(FAMILY), keep_ratio=0.03)
    prompt = ragged(FAMILY)[0]
    flags = [flag for picture in prompt.images for flag in picture.candidates]
    counted = sum(row.visual_tokens for row in got.reports[0].rows)
    assert counted == sum(flags) < len(flags)
    ids = prompt.inputs["input_ids"]
    pads = (ids == FAMILY.model().config.image_token_id).nonzero()
    newlines = {tuple(at.tolist()) for at, flag in zip(pads, flags, strict=True) if not flag}
    chosen = {(b, int(i)) for b, row in enumerate(got.reports[0].rows) for i in row.kept}
    assert newlines
    assert not newlines & chosen


def test_sizes_as_lists() -> None:
    """As some callers pass them; the model takes them too."""
    want = run_pruned(FAMILY, direct, one(FAMILY))
    prompt = one(FAMILY)[0]
    prompt.inputs["image_sizes"] = prompt.inputs["image_sizes"].tolist()
    got = run_pruned(FAMILY, direct, [prompt])
    assert torch.equal(got.outcome.logits[0], want.outcome.logits[0])


def test_numbers_of_cells_are_exact_where_fp32_is_not() -> None:
    """The layout survives a default dtype that cannot count the cells."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = run_pruned(FAMILY, direct, one(FAMILY))
    finally:
        torch.set_default_dtype(before)
    want = run_pruned(FAMILY, direct, one(FAMILY))
    for a, b in zip(got.reports[0].rows[0].images, want.reports[0].rows[0].images, strict=True):
        assert torch.equal(a.entropy, b.entropy)


def test_the_canvases_cover_what_the_tests_need() -> None:
    counts = {1 + (height // 56) * (width // 56) for height, width in CANVASES}
    assert counts == {3, 4, 5}


@pytest.mark.parametrize("given", [None, processor()], ids=["assumed", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixel_types(dtype: torch.dtype, given: object) -> None:
    check_pixels(FAMILY, dtype, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_statistics_are_refused(dtype: torch.dtype) -> None:
    check_statistics_refused(FAMILY, processor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3), dtype)


def test_waits_of_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, and the sizes of the images."""
    check_waits(FAMILY, 2, monkeypatch)
