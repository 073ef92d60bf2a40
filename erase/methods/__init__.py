"""Pruning methods: the protocol they follow, and the methods themselves."""

from erase.methods._protocol import (
    Draft,
    ImagePlan,
    ImageSignals,
    LayerSignals,
    Method,
    ModelFacts,
    RowPlan,
)
from erase.methods.erase import EraseConfig
from erase.methods.presets import PRESETS, Preset, find_preset

__all__ = [
    "PRESETS",
    "Draft",
    "EraseConfig",
    "ImagePlan",
    "ImageSignals",
    "LayerSignals",
    "Method",
    "ModelFacts",
    "Preset",
    "RowPlan",
    "find_preset",
]
