"""Pruning methods: the protocol they follow, and the methods themselves."""

from erase.methods._protocol import (
    Draft,
    ImagePlan,
    ImageSignals,
    LayerSignals,
    Method,
    ModelFacts,
    RowPlan,
    Signal,
)
from erase.methods.downsample import Downsample
from erase.methods.erase import EraseConfig
from erase.methods.fastv import FastV
from erase.methods.presets import PRESETS, Preset, find_preset
from erase.methods.random_tokens import Random

__all__ = [
    "PRESETS",
    "Downsample",
    "Draft",
    "EraseConfig",
    "FastV",
    "ImagePlan",
    "ImageSignals",
    "LayerSignals",
    "Method",
    "ModelFacts",
    "Preset",
    "Random",
    "RowPlan",
    "Signal",
    "find_preset",
]
