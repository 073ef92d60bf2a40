"""Prune redundant visual tokens in stock vision-language models, without training."""

from erase.hf import ResolutionWarning, Session, prune, supported_model_types
from erase.methods import PRESETS, EraseConfig
from erase.report import PrefillReport

__all__ = [
    "PRESETS",
    "EraseConfig",
    "PrefillReport",
    "ResolutionWarning",
    "Session",
    "prune",
    "supported_model_types",
]
