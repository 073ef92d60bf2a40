"""Integration with Hugging Face transformers."""

from erase.hf.families import supported_model_types
from erase.hf.resolution import ResolutionWarning
from erase.hf.session import Session, prune
from erase.hf.support import SupportedModel, supported_models

__all__ = [
    "ResolutionWarning",
    "Session",
    "SupportedModel",
    "prune",
    "supported_model_types",
    "supported_models",
]
