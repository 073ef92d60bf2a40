"""Mistral3: images of different sizes on zero-padded canvases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import erase
from tests.families import mistral3
from tests.families._base import IDS
from tests.families.mistral3 import Lines, image_processor
from tests.hf.cases import BASE_CONFIG
from tests.hf.family_runs import (
    assert_as_the_oracle,
    assert_same_logits,
    generated,
    pruned,
    ragged,
    reads_of_a_prefill,
)
from tests.oracle_choices import cell_entropies
from tests.prompts import CELL, CLIP_MEAN, CLIP_STD, Prompt, page, photo

FAMILY = mistral3.FAMILIES[0]
PATCH = CELL // 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_batch(attention: str) -> None:
    prompt = ragged(FAMILY)
    canvas = prompt.inputs["pixel_values"].shape[-2:]
    assert all(tuple(size) != canvas for size in prompt.inputs["image_sizes"][2:].tolist())
    assert_as_the_oracle(FAMILY, prompt, attention)


def test_keep_everything() -> None:
    inputs = ragged(FAMILY).inputs
    got, reports = pruned(FAMILY, inputs, keep_ratio=1.0, force_gathers=True)
    assert_same_logits(got, generated(FAMILY.model(), inputs))
    assert "compact_rows" in reports[0].backends


def test_with_processor() -> None:
    assert_as_the_oracle(FAMILY, ragged(FAMILY), processor=image_processor())


def test_not_normalized() -> None:
    """Padding is then a gray level, and still no part of an image."""
    processor = image_processor(do_normalize=False)
    images = [photo(5, 6), page(6, 7), page(3, 4, seed=3)]
    raw = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    prompt = FAMILY.encode([images])
    assert_as_the_oracle(
        FAMILY, Prompt({**prompt.inputs, **raw}, prompt.images), processor=processor
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pixels(dtype: torch.dtype) -> None:
    prompt = ragged(FAMILY)
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(dtype)
    if dtype == torch.bfloat16:
        prompt.images = _recovered(prompt.inputs)
    (report,) = assert_as_the_oracle(FAMILY, prompt)
    assert report.approximate_pixels == (dtype == torch.bfloat16)


def _recovered(inputs: dict[str, torch.Tensor]) -> list[Lines]:
    scale, shift = (np.array(v, np.float32)[:, None, None] for v in (CLIP_STD, CLIP_MEAN))
    pictures = []
    for canvas, (height, width) in zip(
        inputs["pixel_values"].float().cpu().numpy(), inputs["image_sizes"].tolist(), strict=True
    ):
        level = (canvas[:, :height, :width] * scale + shift) * np.float32(255)
        level = np.clip(np.floor(level + np.float32(0.5)), 0, 255).astype(np.uint8)
        entropy = cell_entropies(level)
        pictures.append(Lines(entropy, [True] * len(entropy), width // CELL))
    return pictures


@pytest.mark.parametrize("filler", [7.7, float("nan")])
def test_padding_is_never_read(filler: float) -> None:
    """Nor is it by the model."""
    inputs = ragged(FAMILY).inputs
    want, (expected, *_) = pruned(FAMILY, inputs)
    for canvas, (height, width) in zip(
        inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True
    ):
        canvas[:, height:] = filler
        canvas[:, :, width:] = filler
    got, (report, *_) = pruned(FAMILY, inputs)
    assert_same_logits(got, want)
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.kept.tolist() == other.kept.tolist()


def test_sizes_as_numbers() -> None:
    inputs = ragged(FAMILY).inputs
    config = erase.EraseConfig(**BASE_CONFIG)
    numbers = [tuple(size) for size in inputs["image_sizes"].tolist()]
    model = FAMILY.model()
    with torch.no_grad(), erase.prune(model, config):
        want = model(**inputs).logits
        got = model(**{**inputs, "image_sizes": numbers}).logits
    assert torch.equal(got, want)


def test_images_of_broken_cells() -> None:
    """Sizes that are whole patches only: the model leaves out the last line and column."""
    image = photo(5, 6)[: 4 * CELL + PATCH, : 5 * CELL + PATCH]
    whole = {"height": PATCH, "width": PATCH}
    prompt = FAMILY.encode([[image[: 4 * CELL, : 5 * CELL], "Describe the image."]])
    tensors = image_processor()([Image.fromarray(image)], return_tensors="pt", patch_size=whole)
    assert tensors["image_sizes"].tolist() == [[4 * CELL + PATCH, 5 * CELL + PATCH]]
    assert_as_the_oracle(FAMILY, Prompt({**prompt.inputs, **tensors}, prompt.images))


def test_one_read_per_prefill() -> None:
    """The sizes of the images are not read on the host a second time."""
    added, uploads = reads_of_a_prefill(FAMILY, ragged(FAMILY).inputs)
    assert added.total() <= 1, added
    assert uploads == {}


def test_other_pixels_are_refused() -> None:
    inputs = ragged(FAMILY).inputs
    inputs["pixel_values"][1, :, 0, 0] += 0.01
    with pytest.raises(ValueError, match="pixel_values: expected normalised uint8 gray levels"):
        pruned(FAMILY, inputs)


def test_sliding_window_is_refused() -> None:
    """A Mistral configuration has one unless it is switched off, and lists no layer types."""
    model = FAMILY.build(sliding_window=4096)
    with pytest.raises(ValueError, match="sliding-window layers are not supported"):
        erase.prune(model, erase.EraseConfig(**BASE_CONFIG))


def test_line_ends_are_text() -> None:
    """They are neither candidates nor lost."""
    inputs = FAMILY.encode([[page(6, 7), "Describe the image."]]).inputs
    _, (report, *_) = pruned(FAMILY, inputs)
    ends = (inputs["input_ids"][0] == IDS["vision_start_token_id"]).nonzero().flatten().tolist()
    row = report.rows[0]
    assert len(ends) == 5
    assert not set(ends) & set(row.candidates.tolist())
    text = int((inputs["input_ids"] != IDS["image_token_id"]).sum())
    assert set(report.kv_lengths) == {text + len(row.kept)}
