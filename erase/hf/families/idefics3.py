"""Idefics3 and SmolVLM: images as square tiles and a small whole, each between text tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._padding import black_padding
from erase.hf.families._protocol import Encoded, Family, Measure, Statistics
from erase.hf.families._tiles import measure_tiles
from erase.hf.gather import pack_index


class Idefics3(Family):
    """Adapter of ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    Each tile, and the whole image beside them, is planned like an image of its own: nothing that
    the model is given says which tiles belong together. So is each frame of a SmolVLM video. The
    budget of the second stage is one for the batch row, as always.
    """

    model_types = ("idefics3", "smolvlm")
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    videos_are_images = True

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """Cells of every tile, row by row; tiles that only pad are black."""
        pixels = call["pixel_values"]
        real = _real_tiles(pixels)[..., None, None, None]
        tiles = black_padding(pixels, real, statistics).flatten(0, 1)
        side = base.config.vision_config.patch_size * base.config.scale_factor
        return measure_tiles(measure, tiles, (side, side), statistics)

    def tokens(
        self, base: Any, call: Mapping[str, Any], entropy: Tensor, features: Any
    ) -> list[Encoded]:
        """One image per tile that the model encoded.

        The encoder's output is per tile or, in newer transformers, per batch row.
        """
        real = _real_tiles(call["pixel_values"]).reshape(1, -1)
        entropy = entropy.view(real.shape[1], -1)
        encoded = sum(len(part) for part in features)
        index = pack_index(real, encoded // entropy.shape[1])[0]
        return [Encoded(tile) for tile in entropy[index.to(torch.int64)]]


def _real_tiles(pixels: Tensor) -> Tensor:
    """bool [rows, tiles]: as the model tells tiles from padding, which is all zeros."""
    return (pixels != 0).flatten(2).any(-1)


FAMILY = Idefics3()
