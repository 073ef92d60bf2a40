"""Pixels as different processors make them: other dtypes, other arithmetic, no normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from tests.hf.cases import BASE_CONFIG
from tests.hf.place import DEVICE
from tests.models import FAMILIES, shared_model
from tests.oracle_choices import cell_entropies
from tests.prompts import (
    CLIP_MEAN,
    CLIP_STD,
    TEMPORAL,
    Prompt,
    chat_processor,
    encode,
    image_to_cells,
    noise,
    page,
    photo,
)

PICTURES = (photo(4, 5), page(4, 5), noise(3, 3))


def prompt(do_normalize: bool = True) -> Prompt:
    return encode([[*PICTURES, "Compare."]], do_normalize=do_normalize)


def entropies(made: Prompt, do_normalize: bool = True, family: str = "qwen2_5_vl") -> list:
    """Entropies that a session reports for these pixels."""
    model, config = shared_model(family), erase.EraseConfig(**BASE_CONFIG)
    with torch.no_grad(), erase.prune(model, config, chat_processor(do_normalize)) as session:
        model(**made.inputs)
    return [image.entropy.cpu().numpy() for image in session.report.rows[0].images]


def patches(image: np.ndarray) -> torch.Tensor:
    cells = torch.from_numpy(image_to_cells(image).copy())
    return cells[:, :, None].expand(-1, -1, TEMPORAL, -1, -1).reshape(len(cells), -1)


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact(family: str, dtype: torch.dtype, do_normalize: bool) -> None:
    made = prompt(do_normalize)
    made.inputs["pixel_values"] = made.inputs["pixel_values"].to(dtype)
    for got, image in zip(entropies(made, do_normalize, family), made.images, strict=True):
        np.testing.assert_array_equal(got, cell_entropies(image))


def test_fused_normalisation() -> None:
    """torchvision processors fold the rescaling into mean and std; the last bits differ."""
    made = prompt()
    mean, std = (torch.tensor(v, dtype=torch.float32) * 255 for v in (CLIP_MEAN, CLIP_STD))
    fused = [
        (torch.from_numpy(image).float() - mean[:, None, None]) / std[:, None, None]
        for image in made.images
    ]
    pixels = torch.cat([patches(image.numpy()) for image in fused]).to(DEVICE)
    assert pixels.shape == made.inputs["pixel_values"].shape
    apart = [
        (torch.from_numpy(image).float() / 255 - mean[:, None, None] / 255)
        / (std[:, None, None] / 255)
        for image in made.images
    ]
    assert not torch.equal(pixels, torch.cat([patches(i.numpy()) for i in apart]).to(DEVICE))
    made.inputs["pixel_values"] = pixels
    for got, image in zip(entropies(made), made.images, strict=True):
        np.testing.assert_array_equal(got, cell_entropies(image))


def test_image_processor_alone() -> None:
    """``processor`` may be the image processor itself."""
    made = prompt(do_normalize=False)
    model, config = shared_model("qwen2_5_vl"), erase.EraseConfig(**BASE_CONFIG)
    image_processor = chat_processor(False).image_processor
    with torch.no_grad(), erase.prune(model, config, image_processor) as session:
        model(**made.inputs)
    for got, image in zip(session.report.rows[0].images, made.images, strict=True):
        np.testing.assert_array_equal(got.entropy.cpu().numpy(), cell_entropies(image))
