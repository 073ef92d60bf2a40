"""Published settings of ERASE, per model (paper, Table 13), and how a model is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATE_LAYER_FRACTION = (3, 5)
"""Late layer = 3·depth // 5: the paper's 60% of the depth (appendix A.1), in exact integers."""

EARLY_LAYER = {"qwen2_vl": 1, "qwen2_5_vl": 1}
"""0-based early layer per model type: the paper prunes after the second layer (A.1)."""


@dataclass(frozen=True)
class Preset:
    """Thresholds in nats, ratios as the share of visual tokens that stays, and their source.

    ``min_pixels``, ``max_pixels``: bounds of the resized image's area. Entropies depend on the
    resolution, so the thresholds hold only for images resized within them.
    """

    model: str
    model_type: str
    num_layers: int
    hidden_size: int
    entropy_thresholds: tuple[float, ...]
    stage1_keep_ratios: tuple[float, ...]
    source: str
    min_pixels: int
    max_pixels: int


_QWEN_CELL_PIXELS = 28 * 28
"""Area of a visual token: 2x2 patches of 14 pixels."""
_QWEN_MIN_PIXELS = 1280 * _QWEN_CELL_PIXELS
_QWEN_MAX_PIXELS = 16384 * _QWEN_CELL_PIXELS
"""Bounds of the published evaluation settings; smaller images are scaled up."""

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
        min_pixels=_QWEN_MIN_PIXELS,
        max_pixels=_QWEN_MAX_PIXELS,
    ),
    "Qwen2.5-VL-3B": Preset(
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        model_type="qwen2_5_vl",
        num_layers=36,
        hidden_size=2048,
        entropy_thresholds=(2.06, 1.41, 0.89),
        stage1_keep_ratios=(0.8866, 0.8321, 0.4420, 0.3872),
        source="Table 13 as printed (two decimals); keep = 1 - pruned share",
        min_pixels=_QWEN_MIN_PIXELS,
        max_pixels=_QWEN_MAX_PIXELS,
    ),
}


def find_preset(model: Any) -> Preset | None:
    """The preset of a hub name, a preset name, a config or a model; None where there is none.

    A name matches when it contains the preset's name ("Qwen2.5-VL-7B"), a config when model
    type, depth and width agree.
    """
    if isinstance(model, str):
        return next((p for name, p in PRESETS.items() if name.lower() in model.lower()), None)
    config = getattr(model, "config", model)
    text = config.get_text_config()
    key = (config.model_type, text.num_hidden_layers, text.hidden_size)
    for preset in PRESETS.values():
        if key == (preset.model_type, preset.num_layers, preset.hidden_size):
            return preset
    return None


def layers_by_rule(model_type: str, num_layers: int) -> tuple[int, int]:
    """(early, late) 0-based layers of the paper's rule; ValueError for an unknown model type."""
    if model_type not in EARLY_LAYER:
        known = ", ".join(sorted(EARLY_LAYER))
        raise ValueError(f"model: no layer rule for model type {model_type!r} (known: {known})")
    numerator, denominator = LATE_LAYER_FRACTION
    return EARLY_LAYER[model_type], numerator * num_layers // denominator
