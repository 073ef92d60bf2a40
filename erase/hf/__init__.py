"""Integration with Hugging Face transformers."""

from erase.hf.families import supported_model_types
from erase.hf.session import Session, prune

__all__ = ["Session", "prune", "supported_model_types"]
