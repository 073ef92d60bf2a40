"""Qwen3.5 and Qwen3.5-MoE: full attention in some layers, a gated delta rule in the others.

One token = 2x2 patches of 16 pixels, M-RoPE positions. Nothing here is about the recurrent layers
(``erase/hf/recurrent.py``): they need no more than their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._patches import (
    check_patch_sizes,
    frame_entropies,
    mrope_positions,
    patch_entropies,
)
from erase.hf.families._protocol import Family, Statistics


class Qwen35(Family):
    """Adapter of ``Qwen3_5ForConditionalGeneration`` and its mixture-of-experts sibling."""

    model_types = ("qwen3_5", "qwen3_5_moe")
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    prunes_video = True

    def check_processor(self, image_processor: Any, config: Any) -> None:
        """ValueError where the processor's patches are not the model's."""
        check_patch_sizes(image_processor, config.vision_config)

    def cells(self, base: Any, statistics: Statistics, call: Mapping[str, Any]) -> Tensor:
        """One histogram per 2x2 patches."""
        return patch_entropies(call["pixel_values"], base.config.vision_config, statistics)

    def video_cells(self, base: Any, statistics: Statistics, call: Mapping[str, Any]) -> Tensor:
        """One histogram per 2x2 patches of a temporal slice."""
        return frame_entropies(call["pixel_values_videos"], base.config.vision_config, statistics)

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """M-RoPE positions ``[3, B, S]``."""
        return mrope_positions(position_ids, batch, length, past, device)


FAMILY = Qwen35()
