"""The supported model families; adding one is adding a file and a line here."""

from importlib import import_module

from erase.hf.families._protocol import (
    Encoded,
    Family,
    Measure,
    Statistics,
    one_token_per_cell,
)

_ADAPTERS = (
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_5",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "glm4v",
    "mistral3",
    "idefics3",
)
"""Modules of this package, each with its adapter as ``FAMILY``."""

FAMILIES: tuple[Family, ...] = tuple(
    import_module(f"{__name__}.{name}").FAMILY for name in _ADAPTERS
)


def supported_model_types() -> list[str]:
    """``config.model_type`` values that ``prune`` accepts, sorted."""
    return sorted(kind for family in FAMILIES for kind in family.model_types)


def find_family(model_type: str) -> Family:
    """The adapter of a model type; ValueError naming the supported ones."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise ValueError(
        f"model: model type {model_type!r} is not supported; "
        f"supported: {', '.join(supported_model_types())}"
    )


__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "Measure",
    "Statistics",
    "find_family",
    "one_token_per_cell",
    "supported_model_types",
]
