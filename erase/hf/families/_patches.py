"""Processors that store an image as rows of patches, in the order in which they are merged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from erase.hf.families._protocol import Family, Measure, Statistics
from erase_kernels import PixelLayout

MROPE_AXES = 3
"""Temporal, height and width position of a token."""


def patch_layout(vision: Any, statistics: Statistics, *, all_frames: bool = False) -> PixelLayout:
    """Rows of ``pixel_values`` are patches in merge order: ``merge²`` of them make a cell."""
    return PixelLayout.qwen(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        mean=statistics.mean,
        std=statistics.std,
        scale=statistics.scale,
        all_frames=all_frames,
    )


def measure_patches(
    measure: Measure, pixels: Tensor, vision: Any, statistics: Statistics
) -> Tensor:
    """``measure`` of every cell of images; both temporal halves hold the same image."""
    return measure(pixels, patch_layout(vision, statistics))


def measure_frames(measure: Measure, pixels: Tensor, vision: Any, statistics: Statistics) -> Tensor:
    """``measure`` of every cell of videos: of the pixels of all frames of its slice together."""
    return measure(pixels, patch_layout(vision, statistics, all_frames=True))


def check_patch_sizes(image_processor: Any, vision: Any) -> None:
    """ValueError where the processor cuts other patches than the model's."""
    pairs = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, expected in pairs.items():
        got = getattr(image_processor, name, expected)
        if got != expected:
            raise ValueError(f"processor: {name} is {got}, but the model's is {expected}")


def mrope_positions(
    position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
) -> Tensor:
    """M-RoPE positions ``[3, B, S]``.

    The text row of a ``[4, B, S]`` tensor is dropped: after pruning it has gaps, which the model
    would read as packed sequences.
    """
    if position_ids is None:
        steps = torch.arange(past, past + length, device=device)
        return steps.expand(MROPE_AXES, batch, length)
    if position_ids.ndim == 2:
        return position_ids.expand(MROPE_AXES, batch, length)
    return position_ids[-MROPE_AXES:].expand(MROPE_AXES, batch, length)


def function_of_model_file(module: nn.Module, name: str) -> Callable[..., Any] | None:
    """A function that the file of ``module``'s class defines or imports."""
    found: Callable[..., Any] | None
    found = inspect.unwrap(type(module).forward).__globals__.get(name)
    return found


class PatchFamily(Family):
    """Base of the adapters whose processors store rows of patches and whose positions are M-RoPE's.

    One token is ``merge²`` patches, and an image's tokens are its cells in row-major order.
    """

    def check_processor(self, image_processor: Any, config: Any) -> None:
        """ValueError where the processor's patches are not the model's."""
        check_patch_sizes(image_processor, config.vision_config)

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """One cell per merged patches."""
        vision = base.config.vision_config
        return measure_patches(measure, call["pixel_values"], vision, statistics)

    def video_cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """One cell per merged patches of a temporal slice."""
        vision = base.config.vision_config
        return measure_frames(measure, call["pixel_values_videos"], vision, statistics)

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """M-RoPE positions ``[3, B, S]``."""
        return mrope_positions(position_ids, batch, length, past, device)
