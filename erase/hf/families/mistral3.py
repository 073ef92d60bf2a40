"""Mistral Small 3.1 and relatives: Pixtral images of any size, one token = 2x2 patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase.hf.families._padding import black_padding
from erase.hf.families._protocol import (
    Encoded,
    Family,
    Measure,
    Statistics,
    one_token_per_cell,
)
from erase.hf.gather import pack_index
from erase.transfer import moved, upload
from erase_kernels import PixelLayout


class Mistral3(Family):
    """Adapter of ``Mistral3ForConditionalGeneration``.

    A batch holds images in the top left corners of equal canvases. Which cells are image is worked
    out where ``image_sizes`` are: reading them on the host would make it wait before the encoder.
    Tokens that end a line or an image are text: their ids are of their own.
    """

    model_types = ("mistral3",)
    # As in the Pixtral processor.
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """Cells of every canvas; those of the padding are black."""
        pixels, cell = call["pixel_values"], _cell_size(base.config)
        inside = _image_cells(call, cell)
        height, width = (size * cell for size in inside.shape[1:])
        pixels = pixels[:, :, :height, :width]
        covered = inside.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        pixels = black_padding(pixels, covered[:, None], statistics)
        layout = PixelLayout.tiles(
            cell, height, width, statistics.mean, statistics.std, statistics.scale
        )
        return measure(pixels, layout)

    def tokens(
        self, base: Any, call: Mapping[str, Any], entropy: Tensor, features: Any
    ) -> list[Encoded]:
        """The cells of each image, row by row, without those of the padding."""
        inside = _image_cells(call, _cell_size(base.config)).reshape(1, -1)
        index = pack_index(inside, sum(len(part) for part in features))[0]
        return one_token_per_cell(entropy[index.to(torch.int64)], features)


def _cell_size(config: Any) -> int:
    size: int = config.vision_config.patch_size * config.spatial_merge_size
    return size


def _image_cells(call: Mapping[str, Any], cell: int) -> Tensor:
    """Which cells of the canvases hold an image: bool [images, rows, columns]."""
    pixels, sizes = call["pixel_values"], call["image_sizes"]
    if isinstance(sizes, Tensor):
        sizes = moved(sizes, pixels.device)
    else:
        sizes = upload(_numbers(sizes), torch.int64, pixels.device)
    rows, columns = (size // cell for size in pixels.shape[-2:])
    held = (sizes // cell)[:, :, None]
    in_rows = torch.arange(rows, device=pixels.device) < held[:, 0]
    in_columns = torch.arange(columns, device=pixels.device) < held[:, 1]
    return in_rows[:, :, None] & in_columns[:, None]


def _numbers(sizes: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[int(height), int(width)] for height, width in sizes]


FAMILY = Mistral3()
