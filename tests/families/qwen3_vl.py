"""Qwen3-VL, dense and mixture of experts: cells of 32 pixels, three DeepStack planes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.families._base import IDS
from tests.families.qwen2_vl import QwenPrompts
from tests.models import text_config
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import split_images

PATCH = 16
CELL = 32
MEAN = STD = (0.5, 0.5, 0.5)
MAX_TOKENS = 60
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


class TinyQwen3(QwenPrompts):
    """Three vision layers, each of which makes a plane for the first three decoder layers."""

    released = True
    mrope = True
    patch = PATCH
    mean = MEAN
    std = STD

    def __init__(self, name: str) -> None:
        self.name = name

    def config(self, text: dict[str, Any]) -> Any:
        vision = {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        }
        experts = self.name == "qwen3_vl_moe"
        config_class = Qwen3VLMoeConfig if experts else Qwen3VLConfig
        text = {**text, **EXPERTS} if experts else text
        return config_class(
            text_config=text, vision_config=vision, tie_word_embeddings=False, **IDS
        )

    def model_class(self) -> Any:
        if self.name == "qwen3_vl_moe":
            return Qwen3VLMoeForConditionalGeneration
        return Qwen3VLForConditionalGeneration

    def text(self) -> dict[str, Any]:
        settings = text_config(mrope=True)
        rope = {**settings["rope_parameters"], "mrope_section": [3, 3, 2]}
        return {**settings, "rope_parameters": {**rope, "mrope_interleaved": True}, "head_dim": 16}

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        tensors = dict(image_processor()(images, return_tensors="pt"))
        entropies = [cell_entropies(image, CELL) for image in resized_uint8(images)]
        return tensors, [Picture(e, [True] * len(e)) for e in entropies]


@functools.cache
def image_processor() -> Qwen2VLImageProcessor:
    """The stock image processor with the family's settings, bounded so that prompts stay small."""
    return Qwen2VLImageProcessor(
        size={"shortest_edge": 4 * CELL**2, "longest_edge": MAX_TOKENS * CELL**2},
        patch_size=PATCH,
        image_mean=MEAN,
        image_std=STD,
    )


def resized_uint8(images: list[np.ndarray]) -> list[np.ndarray]:
    """What the processor's resize makes of the images: uint8 [3, H, W]."""
    out = image_processor()(images, do_rescale=False, do_normalize=False, return_tensors="pt")
    levels = split_images(out["pixel_values"], out["image_grid_thw"], PATCH)
    assert all(np.array_equal(level, np.rint(level)) for level in levels)
    return [level.astype(np.uint8) for level in levels]


FAMILIES = (TinyQwen3("qwen3_vl"), TinyQwen3("qwen3_vl_moe"))
