"""Integration with Hugging Face transformers."""

from erase.hf.families import supported_model_types
from erase.hf.resolution import ResolutionWarning
from erase.hf.session import Session, prune

__all__ = ["ResolutionWarning", "Session", "prune", "supported_model_types"]
