"""What a model, or its configuration, tells about itself: depth, width, cell size, layers."""

from __future__ import annotations

from typing import Any

LATE_LAYER_FRACTION = (3, 5)
"""Late layer = 3·depth // 5: the paper's 60% of the depth (appendix A.1), in exact integers."""

EARLY_LAYER = 1
"""0-based early layer: the paper prunes after the second layer (A.1)."""

DEEPSTACK_EARLY_LAYER = {"qwen3_vl": 3, "qwen3_vl_moe": 3}
"""Exceptions (A.1): visual features are still added to the hidden states after the first three
layers, so the paper prunes after the fourth."""


def unwrap(model: Any) -> Any:
    """The model inside ``torch.compile`` and PEFT wrappers; anything else as it is."""
    while True:
        # Of the instance, not of the class: wrappers answer for what they wrap.
        inner = getattr(model, "__dict__", {}).get("_modules", {}).get("_orig_mod")
        if inner is None and hasattr(type(model), "get_base_model"):
            inner = model.get_base_model()
        if inner is None or inner is model:
            return model
        model = inner


def configuration(model: Any) -> Any:
    """The configuration of a model, wrapped or not, or the one given.

    Raises:
        TypeError: neither a model with a transformers configuration nor a configuration.
    """
    inner = unwrap(model)
    config = getattr(inner, "config", inner)
    if not hasattr(config, "get_text_config") or not hasattr(config, "model_type"):
        raise TypeError(
            "model: expected a transformers model, its config or a hub name, "
            f"got {type(model).__name__}"
        )
    return config


def text_facts(config: Any) -> tuple[int | None, int | None]:
    """(decoder layers, hidden size) of the language model, None where the config has no such."""
    text = config.get_text_config()
    return getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)


def cell_side(config: Any) -> int | None:
    """Side of a visual token in pixels, as far as the configuration tells; else None.

    ``patch_size`` of the vision encoder times what merges patches into a token; without any,
    LLaVA's encoders give a token per patch, and of other models nothing is known.
    """
    vision: Any = getattr(config, "vision_config", None)
    patch: Any = getattr(vision, "patch_size", None)
    if isinstance(patch, (list, tuple)):
        patch = patch[0]
    if not isinstance(patch, int):
        return None
    for holder, name in (
        (vision, "spatial_merge_size"),  # Qwen, GLM
        (config, "spatial_merge_size"),  # Mistral3
        (config, "downsample_factor"),  # Cohere
        (config, "scale_factor"),  # Idefics3
    ):
        merge = getattr(holder, name, None)
        if merge:
            return int(patch * merge)
    ratio = getattr(config, "downsample_ratio", None)  # InternVL
    if ratio:
        side: int = round(patch / ratio)
        return side
    return int(patch) if "llava" in config.model_type else None


def layers_by_rule(model_type: str, num_layers: int) -> tuple[int, int]:
    """(early, late) 0-based layers of the paper's rule, for every model type.

    The published code has fixed late layers instead: 16 for Qwen2.5-VL of at most 30 layers, 21
    otherwise and for every Qwen3-VL. For the depths of the paper, 28 and 36, it is the same.
    """
    numerator, denominator = LATE_LAYER_FRACTION
    early = DEEPSTACK_EARLY_LAYER.get(model_type.removesuffix("_text"), EARLY_LAYER)
    return early, numerator * num_layers // denominator
