"""Stage 1 of one image without a model, against the oracle; any file becomes 8-bit RGB."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erase.inspection import (
    cell_side,
    image_processor,
    inspect_image,
    load_image,
    resize,
)
from erase.methods import PRESETS, EraseConfig
from erase.methods.presets import PixelBounds
from erase_kernels import PixelLayout, patch_entropy, patch_entropy_from_pixels
from tests.oracle_choices import choose_image
from tests.prompts import page, photo

WHOLE = [name for name, preset in PRESETS.items() if isinstance(preset.resolution, PixelBounds)]
"""Presets of models that see an image in one piece."""


@pytest.mark.parametrize("keep", [0.15, 0.6, 1.0])
@pytest.mark.parametrize("preset", WHOLE)
@pytest.mark.parametrize("make", [photo, page])
def test_inspection_equals_the_oracle(make: object, preset: str, keep: float) -> None:
    cell = PRESETS[preset].cell
    bounds = PixelBounds(90 * cell**2, 120 * cell**2)
    small = dataclasses.replace(PRESETS[preset], resolution=bounds)
    method = EraseConfig.for_model(preset, keep_ratio=keep)
    seen = inspect_image(Image.fromarray(make(7, 9)), small, method)
    assert 90 <= len(seen.entropy) <= 120
    assert seen.grid == (seen.image.shape[1] // cell, seen.image.shape[2] // cell)
    expected = choose_image(method, seen.image.numpy(), cell)
    assert np.abs(seen.entropy.numpy() - expected.entropy).max() <= 1e-6
    assert seen.median == pytest.approx(expected.median, abs=1e-6)
    assert seen.level == expected.level
    assert seen.kept.tolist() == expected.kept
    assert seen.layer == (method.late_layer if expected.level < 2 else method.early_layer)
    assert seen.late == (expected.level < 2)
    assert seen.final == min(int(len(seen.entropy) * keep), len(expected.kept))
    assert set(seen.backends.values()) == {"native"}


@pytest.mark.parametrize("make", [photo, page])
def test_resized_image_is_what_the_model_sees(make: object) -> None:
    """Its entropies equal, bit for bit, those recovered from the normalised pixel values."""
    processor = image_processor(90 * 28**2, 120 * 28**2)
    image = Image.fromarray(make(7, 9))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    layout = PixelLayout.qwen(mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    resized = resize(image, processor)
    assert torch.equal(
        patch_entropy(resized, cell_side(processor)), patch_entropy_from_pixels(pixels, layout)
    )
    # Entropies ignore where in a cell a pixel lies, so the picture itself is compared too.
    flat = np.asarray(image.resize(resized.shape[:0:-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(resized.permute(1, 2, 0).numpy() - flat).max() <= 3


def test_inspection_sees_both_kinds_of_images() -> None:
    """A photograph is complex and a page is simple: else the comparison above proves little."""
    preset = PRESETS["Qwen2.5-VL-7B"]
    method = EraseConfig.for_model(preset.model, keep_ratio=0.15)
    assert inspect_image(Image.fromarray(photo(7, 9)), preset, method).level == 0
    assert inspect_image(Image.fromarray(page(36, 36)), preset, method).level == 3


def test_tiles_are_not_shown() -> None:
    method = EraseConfig.for_model("InternVL3-8B")
    with pytest.raises(ValueError, match="preset: InternVL3-8B cuts images into tiles"):
        inspect_image(Image.fromarray(photo(7, 9)), PRESETS["InternVL3-8B"], method)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    source = Image.fromarray(photo(2, 3)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    source.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert loaded.size == source.size
    difference = np.asarray(loaded).astype(int) - np.asarray(source.convert("RGB"))
    assert np.abs(difference).max() <= 1


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).repeat(4).reshape(32, 32) * 257
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png"))[..., 0], levels // 257)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_levels_are_stretched(dtype: type, tmp_path: Path) -> None:
    levels = (np.arange(1024).reshape(32, 32) - 300).astype(dtype) * 7
    Image.fromarray(levels).save(tmp_path / "a.tif")
    loaded = np.asarray(load_image(tmp_path / "a.tif"))[..., 0]
    assert (loaded.min(), loaded.max()) == (0, 255)
    assert (np.diff(loaded.ravel().astype(int)) >= 0).all()
    Image.fromarray(np.full((8, 8), 5, dtype)).save(tmp_path / "flat.tif")
    assert not np.asarray(load_image(tmp_path / "flat.tif")).any()


def test_rotated_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.fromarray(photo(2, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (2 * 28, 3 * 28)
