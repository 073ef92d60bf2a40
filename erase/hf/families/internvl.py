"""InternVL: square tiles and a thumbnail, one token = 2x2 patches of 14 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from erase.hf.families._protocol import Family, Measure, Statistics
from erase.hf.families._tiles import IMAGENET, measure_tiles, sides


class InternVL(Family):
    """Adapter of ``InternVLForConditionalGeneration`` (InternVL2.5, 3, 3.5).

    All tiles of an image and its thumbnail, which follow one another in the prompt, share one
    ranking, one level and one budget. The processor makes video frames into images of
    one tile each, and the model cannot tell them apart: every frame is pruned like an image.
    """

    model_types = ("internvl",)
    pixel_mean = IMAGENET.mean
    pixel_std = IMAGENET.std
    joins_tiles = True
    videos_are_images = True

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """One cell per token, row-major in each tile, as the model's pixel shuffle has them.

        Raises:
            ValueError: a tile that is not square, whose tokens the model would mix up.
        """
        pixels = call["pixel_values"]
        patch = sides(base.config.vision_config.patch_size)
        merge = round(1 / base.config.downsample_ratio)
        height, width = pixels.shape[-2:]
        if height // patch[0] != width // patch[1]:
            raise ValueError(
                "pixel_values: expected square tiles, the only ones whose patches the model "
                f"merges in place, got {height}x{width} pixels"
            )
        cell = (patch[0] * merge, patch[1] * merge)
        return measure_tiles(measure, pixels, cell, statistics)


FAMILY = InternVL()
