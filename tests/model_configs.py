"""Stock configurations of any family, depth and width; no weights."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

MODELS = {
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 28, 3584, 28),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 36, 2048, 28),
    "Qwen3-VL-8B": ("qwen3_vl", 36, 4096, 32),
    "Qwen3-VL-4B": ("qwen3_vl", 36, 2560, 32),
    "InternVL3-8B": ("internvl", 28, 3584, 28),
}
"""Model type, decoder layers, width, pixels along a visual token."""

THRESHOLDS = {
    "entropy_thresholds": (3.0, 2.0, 1.0),
    "stage1_keep_ratios": (0.9, 0.8, 0.6, 0.3),
}


def make_config(kind: str, layers: int, width: int = 256) -> Any:
    """The stock configuration of a model type with a decoder of this depth and width."""
    text: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": width // 4,
    }
    stock = CONFIG_MAPPING[kind]().get_text_config().model_type
    return CONFIG_MAPPING[kind](text_config=text | {"model_type": stock})
