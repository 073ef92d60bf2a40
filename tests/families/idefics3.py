"""Idefics3 and SmolVLM: tiles, and the whole image behind them, each after text tokens."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from erase.demo_assets import load_tokenizer
from tests.families._base import IDS, TinyFamily
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import ANSWER, CELL, SYSTEM, Prompt

TILE = 3 * CELL
"""Pixels along a side of a tile, of three cells."""
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": CELL // 2,
    "image_size": TILE,
}
_CLASSES = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}


@functools.cache
def image_processor(name: str, **options: Any) -> Any:
    """The stock one, with tiles of nine cells and at most four of them beside the whole."""
    # By its file: transformers 5.16 does not offer it where torchvision is missing.
    file = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    return getattr(file, f"{_CLASSES[name]}ImageProcessorPil")(
        size={"longest_edge": 2 * TILE},
        max_image_size={"longest_edge": TILE},
        return_row_col_info=True,
        **options,
    )


@dataclasses.dataclass
class Tiled:
    """One image: its tiles row by row, then the whole."""

    tiles: list[Picture]
    columns: int


class TinyIdefics3(TinyFamily):
    """Each tile is planned like an image."""

    def __init__(self, name: str) -> None:
        self.name = name

    def config(self, text: dict[str, Any]) -> Any:
        return getattr(transformers, f"{_CLASSES[self.name]}Config")(
            text_config={"model_type": "llama", **text},
            vision_config=dict(_VISION),
            scale_factor=2,
            image_token_id=IDS["image_token_id"],
            pad_token_id=0,
            tie_word_embeddings=False,
        )

    def model_class(self) -> Any:
        return getattr(transformers, f"{_CLASSES[self.name]}ForConditionalGeneration")

    def batch(self, rows: list[list[np.ndarray]]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        nested = [[Image.fromarray(image) for image in row] for row in rows]
        tensors = dict(image_processor(self.name)(nested, return_tensors="pt"))
        tensors = {k: v for k, v in tensors.items() if k not in ("rows", "cols")}
        raw = image_processor(self.name, do_rescale=False, do_normalize=False, do_pad=False)
        images: list[Any] = []
        for pictures in filter(None, nested):
            out = raw([pictures])
            tiles = iter(np.asarray(tile).astype(np.uint8) for tile in out["pixel_values"][0])
            for lines, columns in zip(out["rows"][0], out["cols"][0], strict=True):
                entropies = [cell_entropies(next(tiles)) for _ in range(lines * columns + 1)]
                images.append(Tiled([Picture(e, [True] * len(e)) for e in entropies], columns))
        return tensors, images

    def slot(self, picture: Any) -> list[int]:
        tokenizer = load_tokenizer()
        fake = IDS["vision_start_token_id"]
        ids: list[int] = []
        for number, tile in enumerate(picture.tiles):
            row, column = divmod(number, max(picture.columns, 1))
            name = f"row {row} col {column}" if tile is not picture.tiles[-1] else "global"
            pad = [IDS["image_token_id"]] * len(tile.candidates)
            ids += [fake, *tokenizer(name).input_ids, *pad]
        return [*ids, fake]

    def encode(self, rows: list[list[Any]], head: str = SYSTEM, tail: str = ANSWER) -> Prompt:
        prompt = super().encode(rows, head, tail)
        prompt.images = [tile for image in prompt.images for tile in image.tiles]
        return prompt


FAMILIES = tuple(TinyIdefics3(name) for name in _CLASSES)
