"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import Glm4vImageProcessor

from tests.families._base import IDS, TinyFamily
from tests.families.qwen2_vl import mrope_positions, mrope_step
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import CELL, TEMPORAL, Prompt, split_images

_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "in_channels": 3,
    "image_size": 112,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": TEMPORAL,
    "out_hidden_size": 64,
    "intermediate_size": 64,
}
_EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "attention_bias": True,
}
_CLASSES = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm46v": "Glm46V", "glm_ocr": "GlmOcr"}


@functools.cache
def image_processor(**options: Any) -> Any:
    """The stock one, bounded so that prompts stay small; it counts pixels of both frames."""
    pixels = TEMPORAL * CELL * CELL
    size = {"shortest_edge": 4 * pixels, "longest_edge": 90 * pixels}
    return Glm4vImageProcessor(size=size, **options)


class TinyGlm4V(TinyFamily):
    """Half of each head is rotated, by three axes, in pairs of neighbours."""

    mrope = True

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "glm4v_moe":  # it hands positions of three axes to flash attention
            self.broken = ("flash turns",)

    def text(self) -> dict[str, Any]:
        text = super().text()
        half = {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
        text["rope_parameters"] = {**text["rope_parameters"], **half}
        return {**text, **_EXPERTS} if self.name == "glm4v_moe" else text

    def config(self, text: dict[str, Any]) -> Any:
        return getattr(transformers, f"{_CLASSES[self.name]}Config")(
            text_config=text,
            vision_config=dict(_VISION),
            image_token_id=IDS["image_token_id"],
            video_token_id=IDS["video_token_id"],
            image_start_token_id=IDS["vision_start_token_id"],
            image_end_token_id=IDS["vision_end_token_id"],
            tie_word_embeddings=False,
        )

    def model_class(self) -> Any:
        return getattr(transformers, f"{_CLASSES[self.name]}ForConditionalGeneration")

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        pictures = [Image.fromarray(image) for image in images]
        tensors = dict(image_processor()(pictures, return_tensors="pt"))
        raw = image_processor(do_rescale=False, do_normalize=False)(pictures, return_tensors="pt")
        levels = split_images(raw["pixel_values"], raw["image_grid_thw"])
        entropies = [cell_entropies(level.astype(np.uint8)) for level in levels]
        return tensors, [Picture(e, [True] * len(e)) for e in entropies]

    def token_types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (ids == IDS["image_token_id"]).int()}

    def decode_positions(self, model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return mrope_step(model, mask)

    def later_images(self, model: Any, joined: dict, prompts: list[Prompt]) -> dict[str, Any]:
        extra = super().later_images(model, joined, prompts)
        return {**extra, "position_ids": mrope_positions(model, joined, prompts)}


FAMILIES = tuple(TinyGlm4V(name) for name in _CLASSES)
