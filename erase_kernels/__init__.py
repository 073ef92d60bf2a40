"""Operators for pruning visual tokens: reference, native and Triton implementations of each."""

from __future__ import annotations

from erase_kernels import _backends, _schemas
from erase_kernels._backends import BackendInfo
from erase_kernels._backends import choose as choose_backend
from erase_kernels._status import check_status, raise_for_status, status_word
from erase_kernels.ops.compact_kv import compact_kv_
from erase_kernels.ops.compact_rows import compact_rows
from erase_kernels.ops.complexity_plan import ComplexityPlan, complexity_plan
from erase_kernels.ops.patch_edges import patch_edges
from erase_kernels.ops.patch_edges_from_pixels import patch_edges_from_pixels
from erase_kernels.ops.patch_entropy import patch_entropy
from erase_kernels.ops.patch_entropy_from_pixels import patch_entropy_from_pixels
from erase_kernels.ops.segmented_topk import SegmentedTopK, segmented_topk
from erase_kernels.ops.text_to_vision_scores import text_to_vision_scores
from erase_kernels.pixel_layout import PixelLayout

__version__ = "0.1.0"

__all__ = [
    "BackendInfo",
    "ComplexityPlan",
    "PixelLayout",
    "SegmentedTopK",
    "backend_info",
    "check_status",
    "choose_backend",
    "compact_kv_",
    "compact_rows",
    "complexity_plan",
    "patch_edges",
    "patch_edges_from_pixels",
    "patch_entropy",
    "patch_entropy_from_pixels",
    "raise_for_status",
    "segmented_topk",
    "status_word",
    "text_to_vision_scores",
]

del _schemas  # imported for its registrations


def backend_info() -> BackendInfo:
    """Versions, and which backends are available here, with the reason for each that is not."""
    return _backends.backend_info(__version__)
