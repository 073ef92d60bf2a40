"""The warning about image sizes that a preset's thresholds were not tuned on."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    Glm4vImageProcessorPil,
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
)

from erase.hf.resolution import ResolutionWarning, check_resolution
from erase.methods import PRESETS, EraseConfig
from tests.prompts import chat_processor

QWEN25 = EraseConfig.for_model("Qwen2.5-VL-7B", keep_ratio=0.2)
QWEN3 = EraseConfig.for_model("Qwen3-VL-4B")
INTERNVL = EraseConfig.for_model("InternVL3-8B")
OWN = QWEN25.replace(entropy_thresholds=(1.7, 1.3, 1.1))

QWEN25_SIZE = {"shortest_edge": 1280 * 28**2, "longest_edge": 16384 * 28**2}
TILES = {"size": {"height": 448, "width": 448}, "crop_to_patches": True}


def qwen(least: int, most: int, cell: int = 28, **settings: Any) -> Any:
    """The stock image processor with bounds in visual tokens."""
    size = {"shortest_edge": least * cell**2, "longest_edge": most * cell**2}
    return Qwen2VLImageProcessorPil(size=size, patch_size=cell // 2, **settings)


def internvl_processor(**settings: Any) -> Any:
    """The stock processor around an image processor; its tokenizer plays no part."""
    processor = InternVLProcessor.__new__(InternVLProcessor)
    processor.image_processor = GotOcr2ImageProcessorPil(**settings)
    return processor


def warned(method: Any, processor: Any) -> str:
    """Text of the one warning, "" without any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_resolution(method, processor)
    assert all(record.category is ResolutionWarning for record in caught)
    assert len(caught) <= 1
    return str(caught[0].message) if caught else ""


def size_of(processor: Any, width: int, height: int) -> int:
    """Pixels of the resized image."""
    out = processor(Image.new("RGB", (width, height)), return_tensors="pt")
    _, rows, columns = out["image_grid_thw"][0].tolist()
    return rows * columns * processor.patch_size**2


@pytest.mark.parametrize(
    ("method", "processor"),
    [
        (QWEN25, qwen(1280, 16384)),
        (QWEN25, qwen(4, 100, do_resize=False)),
        (QWEN25.replace(stage1_keep_ratios=(0.5,) * 4, late_layer=20), qwen(1280, 16384)),
        (QWEN3, qwen(4, 16384, 32)),
        (QWEN3, qwen(64, 16384, 32)),  # as in the model's own files
        (INTERNVL, GotOcr2ImageProcessorPil(**TILES)),
        (INTERNVL, internvl_processor(size=TILES["size"])),
        (QWEN25, None),
        (OWN, qwen(4, 1280)),
        (OWN, CLIPImageProcessorPil()),
        (object(), qwen(4, 1280)),
    ],
)
def test_nothing_to_say(method: Any, processor: Any) -> None:
    assert warned(method, processor) == ""


@pytest.mark.parametrize(
    ("method", "processor", "expected"),
    [
        (QWEN25, qwen(4, 16384), "Qwen2.5-VL-7B, .*1003520 to 12845056 .*3136 to 12845056 pixels"),
        (QWEN25, qwen(1280, 1280), "here they are resized to 1003520 to 1003520 pixels"),
        (QWEN25, qwen(1281, 16384), "1004304 to 12845056"),
        (QWEN25, chat_processor(), "processor.image_processor.size = "),
        (QWEN3, qwen(65, 16384, 32), "Qwen3-VL-4B, .*4096 to 16777216 .*66560 to 16777216 pixels"),
        (QWEN3, qwen(4, 1280, 32), "4096 to 1310720 pixels"),
        (INTERNVL, GotOcr2ImageProcessorPil(), "to one tile of 384 x 384 pixels"),
        (INTERNVL, GotOcr2ImageProcessorPil(**TILES, max_patches=6), "1 to 6 tiles of 448 x 448"),
        (INTERNVL, GotOcr2ImageProcessorPil(**TILES, min_patches=2), "2 to 12 tiles"),
        (INTERNVL, internvl_processor(), "1 to 12 tiles of 384 x 384"),
        (QWEN25, internvl_processor(size=TILES["size"]), "cannot resize so: tune entropy_thres"),
        (INTERNVL, qwen(1280, 16384), "1 to 12 tiles .*1003520 .*cannot resize so"),
        (QWEN25, CLIPImageProcessorPil(), "what CLIPImageProcessorPil makes of .*224.*cannot"),
        (QWEN25, LlavaNextImageProcessorPil(), "LlavaNextImageProcessorPil .*cannot resize so"),
        (QWEN25, PixtralImageProcessorPil(), "'longest_edge': 1024.*cannot resize so"),
    ],
)
def test_differences_are_named(method: Any, processor: Any, expected: str) -> None:
    text = warned(method, processor)
    assert re.search(expected, text), text
    assert text.startswith("processor: the thresholds in use are those of ")


@pytest.mark.parametrize("make", [Qwen2VLImageProcessorPil, Glm4vImageProcessorPil])
def test_advice_about_bounds_helps(make: Any) -> None:
    """What the warning says to set is executed; small images are then scaled up as assumed."""
    processor = make()
    assert size_of(processor, 280, 280) == 280 * 280
    text = warned(QWEN25, processor)
    exec(text.split("To set it: ")[1], {"processor": processor})
    assert warned(QWEN25, processor) == ""
    assert 1280 * 28**2 <= size_of(processor, 280, 280) < 1400 * 28**2
    assert size_of(processor, 1288, 1288) == 1288 * 1288


def test_advice_about_tiles_helps() -> None:
    processor = GotOcr2ImageProcessorPil()
    picture = Image.new("RGB", (1344, 1792))
    assert processor(picture, return_tensors="pt")["pixel_values"].shape[0] == 1
    exec(warned(INTERNVL, processor).split("To set it: ")[1], {"processor": processor})
    assert warned(INTERNVL, processor) == ""
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (13, 3, 448, 448)


def test_old_attributes_count() -> None:
    """Calls of the image processor prefer them to its size."""
    processor = qwen(4, 1280)
    processor.min_pixels, processor.max_pixels = QWEN25_SIZE.values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert size_of(processor, 280, 280) >= 1280 * 28**2
    assert warned(QWEN25, processor) == ""


def test_transferred_thresholds_keep_their_preset() -> None:
    """The origin of the thresholds counts, not the model; also after a round trip through JSON."""
    method = EraseConfig.for_model("InternVL3-8B", transfer_from="Qwen2.5-VL-3B")
    text = warned(EraseConfig.from_json(method.to_json()), qwen(4, 16384))
    assert "those of Qwen2.5-VL-3B" in text
    assert method.entropy_thresholds == PRESETS["Qwen2.5-VL-3B"].entropy_thresholds


def test_warning_names_the_callers_line() -> None:
    def prune() -> None:
        check_resolution(QWEN25, qwen(4, 16384))

    with pytest.warns(ResolutionWarning) as caught:
        prune()
    assert caught[0].filename == __file__
    assert caught[0].lineno == prune.__code__.co_firstlineno + 4
