"""Prune redundant visual tokens in stock vision-language models, without training."""

from erase.hf import (
    ResolutionWarning,
    Session,
    SupportedModel,
    prune,
    supported_model_types,
    supported_models,
)
from erase.methods import PRESETS, EraseConfig
from erase.report import PrefillReport

__all__ = [
    "PRESETS",
    "EraseConfig",
    "PrefillReport",
    "ResolutionWarning",
    "Session",
    "SupportedModel",
    "prune",
    "supported_model_types",
    "supported_models",
]
