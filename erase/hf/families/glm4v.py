"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: one token = 2x2 patches of 14 pixels, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._patches import check_patch_sizes, mrope_positions, patch_entropies
from erase.hf.families._protocol import Family, Statistics


class Glm4V(Family):
    """Adapter of ``Glm4vForConditionalGeneration`` and its relatives, dense and MoE.

    Their prompts mark the frames of a video with the image token. A video passes through; with an
    image in the same call the models themselves refuse it.
    """

    model_types = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
    # CLIP statistics, as in the family's preprocessor_config.json.
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    videos_use_image_tokens = True

    def check_processor(self, image_processor: Any, config: Any) -> None:
        """ValueError where the processor's patches are not the model's."""
        check_patch_sizes(image_processor, config.vision_config)

    def cells(self, base: Any, statistics: Statistics, call: Mapping[str, Any]) -> Tensor:
        """One histogram per 2x2 patches."""
        return patch_entropies(call["pixel_values"], base.config.vision_config, statistics)

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """M-RoPE positions ``[3, B, S]``."""
        return mrope_positions(position_ids, batch, length, past, device)


FAMILY = Glm4V()
