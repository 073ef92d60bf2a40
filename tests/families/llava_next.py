"""LLaVA-NeXT: a base tile and a grid of tiles, with a newline after each row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
)

from tests.families._base import IDS, TinyFamily
from tests.families._pixels import (
    any_resolution,
    best_canvas,
    cell_map,
    cut,
    letterboxed,
    mosaic,
    resized,
    without_bars,
)
from tests.oracle_choices import Picture, cell_entropies

TILE = 56
PATCH = 14
CANVASES = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


@functools.cache
def processor(**changes: Any) -> LlavaNextImageProcessor:
    """The stock image processor as the released checkpoints set it, with small tiles."""
    settings = {
        "size": {"shortest_edge": TILE},
        "crop_size": {"height": TILE, "width": TILE},
        "image_grid_pinpoints": CANVASES,
    }
    return LlavaNextImageProcessor(**{**settings, **changes})


def truth(image: np.ndarray, measure: Any = cell_entropies) -> Picture:
    """Cells and newlines of one image; entropies, or edges in their place."""
    height, width = image.shape[:2]
    canvas = best_canvas(height, width, CANVASES)
    tiles = cut(letterboxed(image, canvas, measure), TILE)
    cells = mosaic(tiles, canvas[1] // TILE, PATCH, measure)
    base = cell_map(resized(image, TILE, TILE), PATCH, measure)
    return any_resolution(base, without_bars(cells, height, width))


class TinyLlavaNext(TinyFamily):
    """16 tokens per tile, of which padding and newlines are no candidates."""

    name = "llava_next"

    def config(self, text: dict[str, Any]) -> LlavaNextConfig:
        return LlavaNextConfig(
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": TILE,
                "patch_size": PATCH,
            },
            text_config={"model_type": "llama", **text},
            image_token_index=IDS["image_token_id"],
            image_grid_pinpoints=CANVASES,
        )

    def model_class(self) -> Any:
        return LlavaNextForConditionalGeneration

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        out = processor()(images, return_tensors="pt")
        tensors = {name: out[name] for name in ("pixel_values", "image_sizes")}
        return tensors, [truth(image) for image in images]


FAMILIES = (TinyLlavaNext(),)
