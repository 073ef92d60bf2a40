"""Operators for pruning visual tokens: reference and native implementations of each."""

from __future__ import annotations

from erase_kernels import _backends, _schemas
from erase_kernels._backends import BackendInfo
from erase_kernels._backends import choose as choose_backend
from erase_kernels.ops.patch_entropy import patch_entropy
from erase_kernels.ops.patch_entropy_from_pixels import patch_entropy_from_pixels
from erase_kernels.pixel_layout import PixelLayout

__version__ = "0.1.0"

__all__ = [
    "BackendInfo",
    "PixelLayout",
    "backend_info",
    "choose_backend",
    "patch_entropy",
    "patch_entropy_from_pixels",
]

del _schemas  # imported for its registrations


def backend_info() -> BackendInfo:
    """Versions, and which backends are available here, with the reason for each that is not."""
    return _backends.backend_info(__version__)
