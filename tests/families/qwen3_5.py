"""Qwen3.5 and its mixture of experts: every other text layer is recurrent."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import Qwen2VLImageProcessor

from tests.families._base import IDS, TinyFamily
from tests.families.qwen2_vl import mrope_positions, mrope_step
from tests.models import text_config
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import Prompt

LAYER_TYPES = ("linear_attention", "full_attention") * 3
FULL_LAYERS = (1, 3, 5)
PATCH, MERGE, FRAMES = 16, 2, 2
CELL = PATCH * MERGE
HALF = (0.5, 0.5, 0.5)


@functools.cache
def image_processor() -> Qwen2VLImageProcessor:
    """The stock image processor with the family's patches, bounded so that prompts stay small."""
    return Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=FRAMES,
        image_mean=HALF,
        image_std=HALF,
        size={"shortest_edge": 4 * CELL * CELL, "longest_edge": 40 * CELL * CELL},
    )


def unpacked(patches: np.ndarray, grid: list[int]) -> np.ndarray:
    """[patches, C * 2 * 16 * 16] of one image, in merge order -> [C, H, W] of the first frame."""
    _, height, width = grid
    cells = patches.reshape(height // MERGE, width // MERGE, MERGE, MERGE, 3, FRAMES, PATCH, PATCH)
    image = cells[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6)
    return image.reshape(3, height * PATCH, width * PATCH)


CALM_SEEDS = {"qwen3_5": 8, "qwen3_5_moe": 7}
"""Of weights whose logits carry little fp32 noise: attention computed in two ways differs by less
than 1e-5."""


class TinyQwen35(TinyFamily):
    """Six text layers: linear, full, linear, full, linear, full attention."""

    mrope = True

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def prefix(self) -> str:
        return "Qwen3_5Moe" if self.name.endswith("_moe") else "Qwen3_5"

    def model_class(self) -> Any:
        return getattr(transformers, f"{self.prefix}ForConditionalGeneration")

    def text(self) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
        experts = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        }
        return {
            **text_config(),
            **(experts if self.name.endswith("_moe") else {}),
            "rope_parameters": {**rope, "partial_rotary_factor": 0.5},
            "head_dim": 32,
            "layer_types": list(LAYER_TYPES),
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }

    def config(self, text: dict[str, Any]) -> Any:
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 64,
        }
        config_class = getattr(transformers, f"{self.prefix}Config")
        return config_class(
            text_config=text, vision_config=vision, tie_word_embeddings=False, **IDS
        )

    def build(self, attention: str = "sdpa", seed: int | None = None, **text: Any) -> Any:
        if seed is None:
            seed = CALM_SEEDS[self.name]
        model = super().build(attention, seed, **text)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "language_model" not in name:
                    continue
                if name.endswith("A_log"):
                    # States that remember an image through the text behind it.
                    weight.copy_(torch.empty(weight.shape).uniform_(-4, -1, generator=generator))
                elif "linear_attn.norm" in name:
                    weight *= 0.5  # the state's part of the residual, and of its rounding
                elif "q_norm" in name or "k_norm" in name:
                    weight.mul_(0.7).sub_(1.0)
                elif "norm" in name:
                    weight -= 1.0  # these norms multiply by 1 + weight
        return model

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        tensors = dict(image_processor()(images, return_tensors="pt"))
        raw = image_processor()(
            [Image.fromarray(image) for image in images],
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        grids = tensors["image_grid_thw"].tolist()
        ends = np.cumsum([0, *(int(np.prod(grid)) for grid in grids)])
        patches = raw["pixel_values"].numpy()
        levels = [unpacked(patches[a:b], g) for a, b, g in zip(ends, ends[1:], grids, strict=False)]
        assert all(np.array_equal(level, np.rint(level)) for level in levels)
        entropies = [cell_entropies(level.astype(np.uint8), CELL) for level in levels]
        return tensors, [Picture(e, [True] * len(e)) for e in entropies]

    def token_types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (ids == IDS["image_token_id"]).int()}

    def decode_positions(self, model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return mrope_step(model, mask)

    def later_images(self, model: Any, joined: dict, prompts: list[Prompt]) -> dict[str, Any]:
        extra = super().later_images(model, joined, prompts)
        return {**extra, "position_ids": mrope_positions(model, joined, prompts)}


FAMILIES = (TinyQwen35("qwen3_5"), TinyQwen35("qwen3_5_moe"))
