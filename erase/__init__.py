"""Prune redundant visual tokens in stock vision-language models, without training."""

from erase.hf import (
    ResolutionWarning,
    Session,
    SupportedModel,
    prune,
    supported_model_types,
    supported_models,
)
from erase.methods import PRESETS, Downsample, EraseConfig, FastV, Random
from erase.report import PrefillReport

__all__ = [
    "PRESETS",
    "Downsample",
    "EraseConfig",
    "FastV",
    "PrefillReport",
    "Random",
    "ResolutionWarning",
    "Session",
    "SupportedModel",
    "prune",
    "supported_model_types",
    "supported_models",
]
