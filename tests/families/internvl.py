"""InternVL3: tiles and a thumbnail of an image are one run of tokens."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from tests.edges_oracle import cell_edges
from tests.families._base import IDS, TinyFamily
from tests.families._pixels import IMAGENET_MEAN, IMAGENET_STD, cell_map, cut, resized
from tests.oracle_choices import Picture

TILE = 112
CELL = 28
LEAST_TILES, MOST_TILES = 2, 3


@functools.cache
def processor(**changes: Any) -> GotOcr2ImageProcessor:
    """The stock image processor as the released checkpoints set it, with small tiles."""
    settings = {
        "size": {"height": TILE, "width": TILE},
        "crop_to_patches": True,
        "min_patches": LEAST_TILES,
        "max_patches": MOST_TILES,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    return GotOcr2ImageProcessor(**{**settings, **changes})


def grid(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the tiles: the nearest aspect ratio; of equal ones the larger grid that
    is not more than twice the image."""
    shapes = [
        (rows, columns)
        for columns in range(1, MOST_TILES + 1)
        for rows in range(1, MOST_TILES + 1)
        if LEAST_TILES <= rows * columns <= MOST_TILES
    ]
    best, least = (1, 1), math.inf
    for rows, columns in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        error = abs(width / height - columns / rows)
        small = 2 * width * height > TILE * TILE * rows * columns
        if error < least or (error == least and small):
            best, least = (rows, columns), error
    return best


def tiles(image: np.ndarray) -> list[np.ndarray]:
    """uint8 [3, 112, 112]: row-major tiles, then the thumbnail."""
    rows, columns = grid(*image.shape[:2])
    parts = cut(resized(image, rows * TILE, columns * TILE), TILE)
    return [*parts, resized(image, TILE, TILE)]


class TinyInternVL(TinyFamily):
    """16 tokens per tile."""

    name = "internvl"

    def config(self, text: dict[str, Any]) -> InternVLConfig:
        return InternVLConfig(
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": TILE,
                "patch_size": 14,
            },
            text_config={"model_type": "qwen2", **text},
            image_token_id=IDS["image_token_id"],
            image_seq_length=(TILE // CELL) ** 2,
            tie_word_embeddings=False,
        )

    def model_class(self) -> Any:
        return InternVLForConditionalGeneration

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        out = processor()(images, return_tensors="pt")
        truths = []
        for image in images:
            entropy = np.concatenate([cell_map(tile, CELL).ravel() for tile in tiles(image)])
            edges = [cell_map(tile, CELL, cell_edges).ravel() for tile in tiles(image)]
            truths.append(Picture(entropy, [True] * len(entropy), edges=np.concatenate(edges)))
        return {"pixel_values": out["pixel_values"]}, truths


FAMILIES = (TinyInternVL(),)
