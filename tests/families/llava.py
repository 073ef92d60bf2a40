"""LLaVA-1.5, and LLaVA with a Pixtral tower."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralImageProcessor,
)

from tests.families._base import IDS, TinyFamily
from tests.families._pixels import HALF, cell_map, resized
from tests.oracle_choices import Picture

SIDE = 98
PATCH = 14
LONGEST = 112

TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": PATCH,
}


@functools.cache
def processor(**changes: Any) -> CLIPImageProcessor:
    """The stock image processor: the shortest edge is resized, and the middle cut out."""
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPImageProcessor(**{**settings, **changes})


def middle(image: np.ndarray) -> np.ndarray:
    """uint8 [3, 98, 98]."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    longer = int(SIDE * long / short)
    size = (SIDE, longer) if height == short else (longer, SIDE)
    whole = resized(image, *size)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return whole[:, top : top + SIDE, left : left + SIDE]


class TinyLlava(TinyFamily):
    """49 tokens per image; a class token stays with strategy ``"full"``."""

    def __init__(
        self, name: str = "llava", strategy: str = "default", tower: str = "clip_vision_model"
    ) -> None:
        self.name = name
        self.strategy = strategy
        self.tower = tower

    def config(self, text: dict[str, Any]) -> LlavaConfig:
        return LlavaConfig(
            vision_config={"model_type": self.tower, "image_size": SIDE, **TOWER},
            text_config={"model_type": "llama", **text},
            image_token_index=IDS["image_token_id"],
            vision_feature_select_strategy=self.strategy,
        )

    def model_class(self) -> Any:
        return LlavaForConditionalGeneration

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        maps = [cell_map(middle(image), PATCH).ravel() for image in images]
        settings, first = {}, [False] if self.strategy == "full" else []
        if self.tower == "siglip_vision_model":
            settings = {"image_mean": HALF, "image_std": HALF}
            first = []  # it has no class token, so that "default" drops the first cell
            maps = maps if self.strategy == "full" else [cells[1:] for cells in maps]
        out = processor(**settings)(images, return_tensors="pt")
        truths = [Picture(cells, [*first, *[True] * len(cells)]) for cells in maps]
        return {"pixel_values": out["pixel_values"]}, truths


@functools.cache
def pixtral_processor(**changes: Any) -> PixtralImageProcessor:
    """Images of any size, padded to the largest one of the batch."""
    patch = {"height": PATCH, "width": PATCH}
    return PixtralImageProcessor(
        **{"size": {"longest_edge": LONGEST}, "patch_size": patch, **changes}
    )


def whole_patches(image: np.ndarray) -> np.ndarray:
    """uint8 [3, H, W]: at most 112 pixels long, sides rounded up to whole patches."""
    height, width = image.shape[:2]
    ratio = max(height / LONGEST, width / LONGEST, 1.0)
    sides = (-(-int(side // ratio) // PATCH) * PATCH for side in (height, width))
    return resized(image, *sides)


class TinyPixtral(TinyLlava):
    """A row of image tokens ends with one of another id, as its processor writes them."""

    def build(self, attention: str = "sdpa", seed: int = 8, **text: Any) -> Any:
        """With weights that amplify rounding as little as those of the other families."""
        return super().build(attention, seed, **text)

    def config(self, text: dict[str, Any]) -> LlavaConfig:
        return LlavaConfig(
            vision_config={"model_type": "pixtral", "image_size": LONGEST, **TOWER},
            text_config={"model_type": "llama", **text},
            image_token_index=IDS["image_token_id"],
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        out = pixtral_processor()(images, return_tensors="pt")
        tensors = {name: out[name] for name in ("pixel_values", "image_sizes")}
        maps = [cell_map(whole_patches(image), PATCH) for image in images]
        truths = [_Rows(cells.ravel(), [True] * cells.size) for cells in maps]
        for truth, cells in zip(truths, maps, strict=True):
            truth.columns = cells.shape[1]
        return tensors, truths

    def slot(self, picture: Picture) -> list[int]:
        row = [IDS["image_token_id"]] * picture.columns
        rows = len(picture.candidates) // picture.columns
        end = [IDS["vision_end_token_id"]]
        return ([*row, IDS["vision_start_token_id"]] * rows)[:-1] + end


class _Rows(Picture):
    columns: int


FAMILIES = (TinyLlava(), TinyPixtral("llava_pixtral"))
OTHERS = (
    TinyLlava("llava_full", "full"),
    TinyLlava("llava_siglip", "full", "siglip_vision_model"),
    TinyLlava("llava_siglip_default", "default", "siglip_vision_model"),
)
