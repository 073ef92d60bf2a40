"""Published settings of ERASE, per model (paper, Table 13), and how a model is recognised."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from erase.methods._models import configuration, text_facts


@dataclass(frozen=True)
class PixelBounds:
    """One image per prompt slot, resized so that its area lies between the two, in pixels."""

    min_pixels: int
    max_pixels: int

    def __str__(self) -> str:
        return f"{self.min_pixels} to {self.max_pixels} pixels"


@dataclass(frozen=True)
class Tiling:
    """The image is cut into square tiles of ``side`` pixels, and a thumbnail follows them."""

    side: int
    max_tiles: int
    min_tiles: int = 1

    def __str__(self) -> str:
        if self.max_tiles == 1:
            return f"one tile of {self.side} x {self.side} pixels"
        count = f"{self.min_tiles} to {self.max_tiles}"
        return f"{count} tiles of {self.side} x {self.side} pixels and a thumbnail"


@dataclass(frozen=True)
class Preset:
    """Thresholds in nats, ratios as the share of visual tokens that stays, and their source.

    Attributes:
        model: hub name of the weights the settings were tuned on.
        model_type, num_layers, hidden_size: how a configuration of it is recognised.
        cell: side of a visual token in pixels of the resized image. Entropies of cells of
            different sizes do not compare, so thresholds carry over between equal ones only.
        resolution: how the images were resized. Entropies depend on it, so the thresholds hold
            only for images resized alike. Qwen2.5-VL: 1280 to 16384 tokens (OCRBench: from 100),
            so small images were scaled up. Qwen3-VL: the defaults of qwen-vl-utils for patches of
            16, 4 to 16384 tokens, with ``do_resize=False`` in the processor, which comes after
            (OCRBench: from 100). InternVL3: the model's own tiling; the paper says tiles and a
            thumbnail, and not how many.
    """

    model: str
    model_type: str
    num_layers: int
    hidden_size: int
    entropy_thresholds: tuple[float, ...]
    stage1_keep_ratios: tuple[float, ...]
    source: str
    cell: int
    resolution: PixelBounds | Tiling


def _tokens(least: int, most: int, cell: int) -> PixelBounds:
    return PixelBounds(least * cell**2, most * cell**2)


PRESETS: dict[str, Preset] = {
    "Qwen2.5-VL-7B": Preset(
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        model_type="qwen2_5_vl",
        num_layers=28,
        hidden_size=3584,
        entropy_thresholds=(1.6904912034377264, 1.3471717001563197, 1.1718597959685415),
        stage1_keep_ratios=(
            0.8267523535511546,
            0.751410400727526,
            0.49466854974609853,
            0.4033912240039451,
        ),
        source="Table 13, in the full precision of the published launch script",
        cell=28,
        resolution=_tokens(1280, 16384, 28),
    ),
    "Qwen2.5-VL-3B": Preset(
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        model_type="qwen2_5_vl",
        num_layers=36,
        hidden_size=2048,
        entropy_thresholds=(2.06, 1.41, 0.89),
        stage1_keep_ratios=(0.8866, 0.8321, 0.4420, 0.3872),
        source="Table 13 as printed (two decimals); keep = 1 - pruned share",
        cell=28,
        resolution=_tokens(1280, 16384, 28),
    ),
    "Qwen3-VL-8B": Preset(
        model="Qwen/Qwen3-VL-8B-Instruct",
        model_type="qwen3_vl",
        num_layers=36,
        hidden_size=4096,
        # Printed as 1.61/0.22/0.06: the second is cut off, the third rounded.
        entropy_thresholds=(1.6102664561128828, 0.2269265653651543, 0.05622356759744964),
        stage1_keep_ratios=(
            0.8450338604820039,
            0.7763170296713962,
            0.7573556106689442,
            0.19399401785935438,
        ),
        source="Table 13, in the full precision of the published launch script",
        cell=32,
        resolution=_tokens(4, 16384, 32),
    ),
    "Qwen3-VL-4B": Preset(
        model="Qwen/Qwen3-VL-4B-Instruct",
        model_type="qwen3_vl",
        num_layers=36,
        hidden_size=2560,
        entropy_thresholds=(4.92, 0.64, 0.55),
        stage1_keep_ratios=(0.8212, 0.7934, 0.4579, 0.2533),
        source="Table 13 as printed (two decimals); keep = 1 - pruned share",
        cell=32,
        resolution=_tokens(4, 16384, 32),
    ),
    "InternVL3-8B": Preset(
        model="OpenGVLab/InternVL3-8B-hf",
        model_type="internvl",
        num_layers=28,
        hidden_size=3584,
        entropy_thresholds=(3.98, 0.70, 0.59),
        stage1_keep_ratios=(0.8414, 0.7612, 0.6932, 0.3242),
        source="Table 13 as printed (two decimals); keep = 1 - pruned share",
        cell=28,
        resolution=Tiling(side=448, max_tiles=12),
    ),
}


def find_preset(model: Any) -> Preset | None:
    """The preset of a hub name, a path, a preset name, a config or a model; None without one.

    A name matches when its last part contains one preset's name as a whole ("Qwen2.5-VL-7B" with
    any organisation before it and any of -Instruct, -hf, -AWQ after it; also a snapshot folder of
    the hub's cache), a model or a config when model type, depth and width agree. Fine-tuned
    weights look like those the settings were tuned on.
    """
    if isinstance(model, (str, os.PathLike)):
        return _find_by_name(os.fspath(model))
    config = configuration(model)
    key = (config.model_type, *text_facts(config))
    for preset in PRESETS.values():
        if key == (preset.model_type, preset.num_layers, preset.hidden_size):
            return preset
    return None


def _find_by_name(name: str) -> Preset | None:
    parts = [part for part in re.split(r"[/\\]", name) if part]
    if parts[-2:-1] == ["snapshots"]:  # .../models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/<hash>
        parts = parts[:-2]
    last = parts[-1] if parts else ""
    found = [
        preset
        for known, preset in PRESETS.items()
        if re.search(rf"(?<![a-z0-9]){re.escape(known)}(?![a-z0-9])", last, re.IGNORECASE)
    ]
    return found[0] if len(found) == 1 else None


def preset_with(entropy_thresholds: tuple[float, ...]) -> Preset | None:
    """The preset these thresholds come from; None for thresholds of another origin."""
    for preset in PRESETS.values():
        if preset.entropy_thresholds == entropy_thresholds:
            return preset
    return None


def preset_name(preset: Preset) -> str:
    """Its key in ``PRESETS``; the hub name of a preset that is not there."""
    return next((name for name, known in PRESETS.items() if known == preset), preset.model)


def known_presets(cell: int | None = None) -> str:
    """Names of all presets, or of those with cells of ``cell`` pixels, for messages."""
    return ", ".join(name for name, preset in PRESETS.items() if cell in (None, preset.cell))
