"""LLaVA-1.5 and its relatives with other vision towers: one token per patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._protocol import Encoded, Family, Measure, Statistics
from erase.hf.families._tiles import (
    CLIP,
    grid_of,
    host_numbers,
    measure_tiles,
    setting,
    sides,
    statistics_of_tower,
    with_leading_token,
)


class Llava(Family):
    """Adapter of ``LlavaForConditionalGeneration``.

    Towers of a fixed size make all images alike. A Pixtral tower is given ``image_sizes``: images
    of any size, padded to the largest one after normalisation; the padding has no cells.
    """

    model_types = ("llava",)
    pixel_mean = CLIP.mean
    pixel_std = CLIP.std

    def usual_statistics(self, config: Any) -> Statistics:
        """Those of the vision tower."""
        return statistics_of_tower(config)

    def read(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """``image_sizes`` on the host."""
        return {**call, "image_sizes": host_numbers(call.get("image_sizes"))}

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """One cell per patch."""
        pixels, sizes = call["pixel_values"], call["image_sizes"]
        patch = sides(base.config.vision_config.patch_size)
        if sizes is None:
            return measure_tiles(measure, pixels, patch, statistics)
        images = zip(pixels.split(1), sizes, strict=False)  # the tower ignores the others too
        return torch.cat(
            [measure_tiles(measure, image, patch, statistics, size) for image, size in images]
        )

    def tokens(
        self, base: Any, call: Mapping[str, Any], entropy: Tensor, features: Any
    ) -> list[Encoded]:
        """One cell per token, but for a class token, which is no candidate."""
        pixels, sizes = call["pixel_values"], call["image_sizes"]
        patch = sides(base.config.vision_config.patch_size)
        if sizes is None:
            sizes = [pixels.shape[-2:]] * len(pixels)
        grids = [grid_of(size, patch) for size in sizes[: len(pixels)]]
        strategy = setting(base, call, "vision_feature_select_strategy")
        return with_leading_token(entropy, features, [r * c for r, c in grids], strategy)


FAMILY = Llava()
