"""Tiny models of every supported family; adding one is adding a file and a line here."""

from __future__ import annotations

from importlib import import_module

from tests.families._base import TinyFamily

_MODULES = (
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
"""Modules of this package, each with its tiny models as ``FAMILIES``."""

ALL: tuple[TinyFamily, ...] = tuple(
    family for name in _MODULES for family in import_module(f"{__name__}.{name}").FAMILIES
)
