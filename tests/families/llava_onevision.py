"""LLaVA-OneVision: as LLaVA-NeXT, but large grids are shrunk."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
)

from tests.families._base import IDS, TinyFamily
from tests.families._pixels import (
    HALF,
    any_resolution,
    best_canvas,
    cell_map,
    cut,
    letterboxed,
    mosaic,
    resized,
    shrunk,
    without_bars,
)
from tests.oracle_choices import Picture, cell_entropies

TILE = 62
"""Not whole patches, like the released checkpoints' 384 pixels: the tower ignores the rest."""
PATCH = 14
ACROSS = 4
MOST_TILES = 2
CANVASES = [[r * TILE, c * TILE] for r in (1, 2) for c in (1, 2, 3)]


@functools.cache
def processor(**changes: Any) -> LlavaOnevisionImageProcessor:
    """The stock image processor as the released checkpoints set it, with small tiles."""
    settings = {
        "size": {"height": TILE, "width": TILE},
        "image_grid_pinpoints": CANVASES,
        "image_mean": HALF,
        "image_std": HALF,
    }
    return LlavaOnevisionImageProcessor(**{**settings, **changes})


def truth(image: np.ndarray, measure: Any = cell_entropies) -> Picture:
    """Cells and newlines of the only image of a prompt; entropies, or edges in their place."""
    height, width = image.shape[:2]
    canvas = best_canvas(height, width, CANVASES)
    tiles = cut(letterboxed(image, canvas, measure), TILE)
    cells = without_bars(mosaic(tiles, canvas[1] // TILE, PATCH, measure), height, width)
    base = cell_map(resized(image, TILE, TILE), PATCH, measure)
    return any_resolution(base, shrunk(cells, MOST_TILES * ACROSS**2))


def squared(image: np.ndarray) -> np.ndarray:
    """uint8 [side, side, 3]: the image in the middle of gray."""
    height, width = image.shape[:2]
    side = max(height, width)
    out = np.full((side, side, 3), int(0.5 * 255), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = image
    return out


def truth_of_several(image: np.ndarray) -> Picture:
    """Cells of one of several images of a prompt: one tile and one newline."""
    return any_resolution(cell_map(resized(squared(image), TILE, TILE), PATCH), None)


class TinyLlavaOnevision(TinyFamily):
    """16 tokens per tile."""

    name = "llava_onevision"

    def config(self, text: dict[str, Any]) -> LlavaOnevisionConfig:
        return LlavaOnevisionConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": TILE,
                "patch_size": PATCH,
                "vision_use_head": False,
            },
            text_config={"model_type": "qwen2", **text},
            image_token_index=IDS["image_token_id"],
            video_token_index=IDS["video_token_id"],
            image_grid_pinpoints=CANVASES,
            vision_aspect_ratio=f"anyres_max_{MOST_TILES}",
        )

    def model_class(self) -> Any:
        return LlavaOnevisionForConditionalGeneration

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        """Every image in tiles, as the processor does where it is given a flat list."""
        out = dict(processor()(images, return_tensors="pt"))
        return out, [truth(image) for image in images]


FAMILIES = (TinyLlavaOnevision(),)
