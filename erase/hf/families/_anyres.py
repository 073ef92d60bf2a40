"""Any-resolution images: a base tile, then a grid of tiles with a newline token after each row.

The model's own ``pack_image_features`` lays tokens out. It is run once more on the host, on the
numbers of the cells instead of features, and so says which cell each token stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase.hf.families._bars import with_bars_filled
from erase.hf.families._patches import function_of_model_file
from erase.hf.families._protocol import Encoded, Family, Measure, Statistics
from erase.hf.families._tiles import (
    host_numbers,
    measure_tiles,
    setting,
    sides,
    statistics_of_tower,
)
from erase.transfer import upload
from erase_kernels import patch_edges_from_pixels

NEWLINE = -1.0
"""Cell number of a newline token."""
BLEND_UNIT = 2.0**-30
"""Nats (of edges: gray levels) to which blends are rounded before fp32; entropies of single cells
are multiples of it."""
SAME_CELL = 0.01
"""Variance of the cell numbers that are blended into one token: above it, there are several."""


class AnyResolution(Family):
    """Base of the adapters whose models pack tiles.

    Attributes:
        pack_settings: further arguments of the model's ``pack_image_features``.
    """

    pack_settings: tuple[str, ...] = ()

    def usual_statistics(self, config: Any) -> Statistics:
        """Those of the vision tower."""
        return statistics_of_tower(config)

    def read(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sizes and numbers of images on the host."""
        names = ("image_sizes", "batch_num_images")
        return {**call, **{name: host_numbers(call[name]) for name in names if name in call}}

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """One cell per patch of every tile, without the tiles that only fill up a batch.

        Edges are those of the image: where it ends in a cell, its last pixels are repeated instead
        of the black bar beside it. Entropies count the bar's pixels, as the published code does.

        Raises:
            ValueError: other tiles than those that ``image_sizes`` ask for.
        """
        pixels, counts = call["pixel_values"], _tile_counts(base, call)
        if pixels.ndim == 5:
            stored = [pixels.shape[1]] * len(counts)
            if len(pixels) == len(counts) and counts == stored:
                pixels = pixels.flatten(0, 1)
            else:
                # What fills up a batch is zero after normalisation, which is no gray level.
                held = [image[:n] for image, n in zip(pixels, counts, strict=False)]
                pixels = torch.cat(held)
        if pixels.ndim == 4 and len(pixels) != sum(counts):
            raise ValueError(
                f"pixel_values: {len(pixels)} tiles, but image_sizes ask for {counts} tiles"
            )
        if measure is patch_edges_from_pixels and pixels.ndim == 4:
            pixels = with_bars_filled(base, pixels, counts, call["image_sizes"])
        patch = sides(base.config.vision_config.patch_size)
        return measure_tiles(measure, pixels, patch, statistics)

    def tokens(
        self, base: Any, call: Mapping[str, Any], entropy: Tensor, features: Any
    ) -> list[Encoded]:
        """The cell of each token; newlines are no candidates.

        A model that shrinks large grids blends each token out of the features of up to four cells;
        its entropy is then the same blend of their entropies, and its edges of their edges.
        """
        counts = _tile_counts(base, call)
        numbers = torch.arange(len(entropy), dtype=torch.float64, device="cpu")
        newline = torch.full((), NEWLINE, dtype=torch.float64, device="cpu")
        planes = _moments(numbers).reshape(sum(counts), -1, 2)
        packed = self._pack(base, call, planes.split(counts), _moments(newline))
        sizes, expected = [len(part) for part in features], [len(part) for part in packed]
        if sizes != expected:
            raise ValueError(
                f"image_sizes: {expected} tokens were expected, but the encoder made {sizes}"
            )
        number, square = torch.cat(packed).numpy().T
        where = number.round()
        if (square - number**2 > SAME_CELL).any():
            # Waits once more on CUDA: packing uploads lengths, as the model's own just did.
            tiles = entropy.double().reshape(sum(counts), -1, 1)
            mark = torch.full((1,), NEWLINE, dtype=torch.float64, device=entropy.device)
            blended = torch.cat(self._pack(base, call, tiles.split(counts), mark)).squeeze(-1)
            # Blends in halves lie between two fp32 numbers; rounded before, they go one way only.
            entropy = ((blended / BLEND_UNIT).round() * BLEND_UNIT).float()
            where = np.arange(len(number))
        chosen = where[number > NEWLINE].astype(int).tolist()
        entropy = entropy[upload(chosen, torch.int64, entropy.device)]
        return _encoded(entropy, [part[:, 0] > NEWLINE for part in packed])

    def _pack(
        self, base: Any, call: Mapping[str, Any], planes: Sequence[Tensor], newline: Tensor
    ) -> list[Tensor]:
        """What the model packs ``[tiles, patches, D]`` of each image into: ``[tokens, D]``."""
        packed, _ = base.pack_image_features(
            list(planes),
            image_sizes=call["image_sizes"],
            image_newline=newline,
            **{name: setting(base, call, name) for name in self.pack_settings},
        )
        return list(packed)


def _moments(numbers: Tensor) -> Tensor:
    """Cell numbers and their squares, which tell a blend of cells from a cell: [..., 2]."""
    return torch.stack([numbers, numbers.square()], dim=-1)


def _encoded(entropy: Tensor, flags: Sequence[Tensor]) -> list[Encoded]:
    """Images out of all their entropies, and flags of their tokens on the CPU."""
    counts = [int(np.count_nonzero(flag.numpy())) for flag in flags]
    return [
        Encoded(part, None if len(part) == len(flag) else flag)
        for part, flag in zip(entropy.split(counts), flags, strict=True)
    ]


def _tile_counts(base: Any, call: Mapping[str, Any]) -> list[int]:
    """Tiles of each image: the base tile, and a grid unless its prompt has several images."""
    count = function_of_model_file(base, "image_size_to_num_patches")
    if count is None:
        raise RuntimeError("stage 1: the model file has no function for the number of tiles")
    config, sizes = base.config, call["image_sizes"]
    together = call.get("batch_num_images")
    patched = [True] * len(sizes)
    if together is not None:
        patched = [n == 1 for n in together for _ in range(n)]
    return [
        count(size, config.image_grid_pinpoints, config.vision_config.image_size) if alone else 1
        for size, alone in zip(sizes, patched, strict=False)
    ]
