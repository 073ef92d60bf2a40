"""Idefics3 and SmolVLM: tiles of their own, and padding where rows have fewer of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import erase
from erase.hf.families import Statistics, find_family
from erase_kernels import patch_entropy_from_pixels
from tests.families import idefics3
from tests.families._base import TinyFamily
from tests.families.idefics3 import image_processor
from tests.hf.cases import BASE_CONFIG, DESCRIBE
from tests.hf.common import snapshot
from tests.hf.family_runs import (
    assert_as_the_oracle,
    assert_same_logits,
    generated,
    pruned,
    ragged,
    reads_of_a_prefill,
)
from tests.oracle_choices import cell_entropies
from tests.prompts import page, photo

FAMILIES = idefics3.FAMILIES
FAMILY = FAMILIES[0]
BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=str)


@BY_NAME
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_batch(family: TinyFamily, attention: str) -> None:
    """Each tile, and the whole, is an image of its own in the report."""
    prompt = ragged(family)
    padding = (prompt.inputs["pixel_values"] == 0).flatten(2).all(-1)
    assert padding.sum(1).tolist() == [5, 0, 10, 0]
    (report,) = assert_as_the_oracle(family, prompt, attention)
    assert [len(row.images) for row in report.rows] == [5, 10, 0, 10]


@BY_NAME
def test_keep_everything(family: TinyFamily) -> None:
    inputs = ragged(family).inputs
    got, reports = pruned(family, inputs, keep_ratio=1.0, force_gathers=True)
    assert_same_logits(got, generated(family.model(), inputs))
    assert "compact_rows" in reports[0].backends


@BY_NAME
def test_with_processor(family: TinyFamily) -> None:
    assert_as_the_oracle(family, ragged(family), processor=image_processor(family.name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pixels(dtype: torch.dtype) -> None:
    """With these statistics even bfloat16 loses no level."""
    prompt = ragged(FAMILY)
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(dtype)
    assert_as_the_oracle(FAMILY, prompt)


def test_padding_anywhere() -> None:
    """The model drops padding wherever it stands, and the tiles behind it move up."""
    inputs = ragged(FAMILY).inputs
    want, (expected, *_) = pruned(FAMILY, inputs)
    moved = {n: inputs[n].clone() for n in ("pixel_values", "pixel_attention_mask")}
    for name, tensor in moved.items():
        tensor[0] = inputs[name][0].roll(3, dims=0)
    assert not moved["pixel_values"][0, :3].any()
    assert moved["pixel_values"][0, 3].any()
    got, (report, *_) = pruned(FAMILY, {**inputs, **moved})
    assert_same_logits(got, want)
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.kept.tolist() == other.kept.tolist()


@BY_NAME
def test_images_of_different_shapes(family: TinyFamily) -> None:
    """Two tiles and the whole beside four and the whole."""
    prompt = family.encode([[photo(3, 9), " and ", page(5, 5), DESCRIBE], ["Why? ", page(6, 3)]])
    assert prompt.inputs["pixel_values"].shape[:2] == (2, 8)
    (report,) = assert_as_the_oracle(family, prompt)
    assert [len(row.images) for row in report.rows] == [8, 3]


def test_without_pixel_mask() -> None:
    prompt = ragged(FAMILY)
    del prompt.inputs["pixel_attention_mask"]
    assert_as_the_oracle(FAMILY, prompt)


def test_one_read_per_prefill() -> None:
    """Which tiles pad is not read on the host a second time."""
    added, uploads = reads_of_a_prefill(FAMILY, ragged(FAMILY).inputs)
    assert added.total() <= 1, added
    assert uploads == {}


def test_other_pixels_are_refused() -> None:
    inputs = ragged(FAMILY).inputs
    inputs["pixel_values"][1, 2, :, 0, 0] += 0.01
    with pytest.raises(ValueError, match="pixel_values: expected normalised uint8 gray levels"):
        pruned(FAMILY, inputs)


@BY_NAME
def test_model_is_left_as_it_was(family: TinyFamily) -> None:
    model = family.model()
    before = snapshot(model)
    inputs = family.encode([[photo(5, 6), DESCRIBE]]).inputs
    pruned(family, inputs)
    assert snapshot(model) == before


@BY_NAME
def test_base_model_alone(family: TinyFamily) -> None:
    """Its decoder is called ``text_model``."""
    base: Any = family.model().base_model
    inputs = family.encode([[photo(5, 6), DESCRIBE]]).inputs
    with torch.no_grad(), erase.prune(base, erase.EraseConfig(**BASE_CONFIG)) as session:
        hidden = base(**inputs).last_hidden_state
    assert hidden.shape[1] == inputs["input_ids"].shape[1]
    assert session.prefills_pruned == 1


def test_pixels_beyond_the_last_cell() -> None:
    """As the encoder's convolution, cells leave out what is over at the edges of a tile."""
    side, tile = 42, 131
    levels = np.random.default_rng(3).integers(0, 256, (2, 3, tile, tile)).astype(np.uint8)
    pixels = torch.from_numpy(levels / np.float32(127.5) - 1).float()[None]
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=14), scale_factor=3)
    call = {"pixel_values": pixels}
    statistics = Statistics((0.5,) * 3, (0.5,) * 3)
    base = SimpleNamespace(config=config)
    entropy = find_family("smolvlm").cells(base, statistics, call, patch_entropy_from_pixels)
    whole = levels[..., : 3 * side, : 3 * side]
    want = np.concatenate([cell_entropies(image, side) for image in whole])
    np.testing.assert_array_equal(entropy.numpy(), want)
