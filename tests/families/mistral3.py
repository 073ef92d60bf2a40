"""Mistral Small 3.1: Pixtral images, each line of tokens followed by a token of its own."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor

from tests.families._base import IDS, TinyFamily
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import CELL

_VISION = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": CELL // 2,
    "image_size": 20 * CELL,
}


@functools.cache
def image_processor(**options: Any) -> Any:
    """The stock one with the patch size that its processor gives it: patch times merge."""
    patch = {"height": CELL, "width": CELL}
    return PixtralImageProcessor(patch_size=patch, size={"longest_edge": 10 * CELL}, **options)


@dataclasses.dataclass
class Lines(Picture):
    """An image whose tokens stand in lines."""

    columns: int


class TinyMistral3(TinyFamily):
    """The ids that end a line and an image are text."""

    name = "mistral3"

    def config(self, text: dict[str, Any]) -> Any:
        return Mistral3Config(
            text_config={"model_type": "mistral", "head_dim": 16, "sliding_window": None, **text},
            vision_config=dict(_VISION),
            spatial_merge_size=2,
            image_token_index=IDS["image_token_id"],
            tie_word_embeddings=False,
        )

    def model_class(self) -> Any:
        return Mistral3ForConditionalGeneration

    def build(self, attention: str = "sdpa", seed: int = 8, **text: Any) -> Any:
        model = super().build(attention, seed, **text)
        # Image rows as long as text rows: shorter ones would magnify the noise of fp32.
        model.base_model.multi_modal_projector.linear_2.weight.data *= 2.0
        return model

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        pictures = [Image.fromarray(image) for image in images]
        tensors = dict(image_processor()(pictures, return_tensors="pt"))
        raw = image_processor(do_rescale=False, do_normalize=False)(pictures, return_tensors="np")
        truths: list[Picture] = []
        for canvas, (height, width) in zip(raw["pixel_values"], raw["image_sizes"], strict=True):
            entropy = cell_entropies(canvas[:, :height, :width].astype(np.uint8))
            truths.append(Lines(entropy, [True] * len(entropy), int(width) // CELL))
        return tensors, truths

    def slot(self, picture: Picture) -> list[int]:
        assert isinstance(picture, Lines)
        line = [IDS["image_token_id"]] * picture.columns + [IDS["vision_start_token_id"]]
        lines = len(picture.candidates) // picture.columns
        return [*(line * lines)[:-1], IDS["vision_end_token_id"]]


FAMILIES = (TinyMistral3(),)
