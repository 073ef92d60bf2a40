"""Processors that store images as tiles, ``[tiles, C, H, W]``: cells in row-major order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase.hf.families._protocol import Encoded, Measure, Statistics
from erase.transfer import download
from erase_kernels import PixelLayout

CLIP = Statistics(
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_OF_TOWERS = {
    "siglip_vision_model": HALF,
    "siglip2_vision_model": HALF,
    "vit": HALF,
    "dinov2": IMAGENET,
    "dinov2_with_registers": IMAGENET,
    "dinov3_vit": IMAGENET,
    "internvl_vision": IMAGENET,
}


def statistics_of_tower(config: Any) -> Statistics:
    """Usual statistics of the images that a model's vision tower was trained on; CLIP's if unknown.

    A wrong guess is refused for fp32 and fp16 pixels, which must be integers when undone.
    """
    return _OF_TOWERS.get(config.vision_config.model_type, CLIP)


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a setting that is one number or two."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def grid_of(size: Sequence[int], cell: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of whole cells in an image; convolutions leave what is over at the edges."""
    return int(size[0]) // cell[0], int(size[1]) // cell[1]


def measure_tiles(
    measure: Measure,
    pixels: Tensor,
    cell: tuple[int, int],
    statistics: Statistics,
    size: Sequence[int] | None = None,
) -> Tensor:
    """``measure`` of every cell, tile by tile, row-major: f32 [tiles * rows * columns].

    Args:
        measure: what is measured in a cell.
        pixels: ``[tiles, C, H, W]``.
        cell: height and width of a cell in pixels.
        statistics: of the processor.
        size: height and width of the image in the upper left corner; what lies outside was padded
            after normalisation and is not read. None: the whole tile.

    Raises:
        ValueError: no whole cell, other dimensions, values that are no normalised gray levels.
    """
    shape = tuple(pixels.shape)
    if len(shape) != 4:
        raise ValueError(f"pixel_values: expected shape [tiles, C, H, W], got {shape}")
    channels, height, width = shape[1:]
    rows, columns = grid_of((height, width) if size is None else size, cell)
    if rows * cell[0] > height or columns * cell[1] > width:
        raise ValueError(f"image_sizes: {tuple(size or ())} reaches out of pixel_values {shape}")
    layout = PixelLayout(
        shape=(channels, height, width),
        cell_sizes=(rows, columns),
        cell_strides=(channels * height * width, cell[0] * width, cell[1]),
        pixel_sizes=(1, *cell),
        pixel_strides=(0, width, 1),
        channels=channels,
        channel_stride=height * width,
        mean=statistics.mean,
        std=statistics.std,
        scale=statistics.scale,
    )
    return measure(pixels, layout)


def host_numbers(values: Any) -> Any:
    """Small integers that describe a call (image sizes, numbers of images), as lists.

    The models read them on the host too, one by one; this waits once, before the encoder's work.
    """
    if isinstance(values, (list, tuple)):
        return [host_numbers(value) for value in values]
    if isinstance(values, Tensor):
        return download(values) if values.ndim else values.item()
    return values.tolist() if isinstance(values, np.ndarray) else values


def with_leading_token(
    entropy: Tensor, features: Any, cells: Sequence[int], strategy: str
) -> list[Encoded]:
    """Images whose tokens are their cells, but for a first token.

    ``"full"`` keeps a class token, which has no cell. ``"default"`` drops the first token of a
    tower that has no class token: the first cell has no token then.

    Args:
        entropy: f32 [sum(cells)].
        features: ``[tokens, D]`` of each image, or of all images of a tower that packs them.
        cells: of each image.
        strategy: ``vision_feature_select_strategy``.

    Raises:
        ValueError: any other number of tokens.
    """
    sizes = [len(part) for part in features]
    parts = list(torch.split(entropy, list(cells)))
    if sizes == list(cells) or (len(sizes) == 1 and sizes[0] == sum(cells)):
        return [Encoded(part) for part in parts]
    if strategy == "full" and sizes == [count + 1 for count in cells]:
        return [Encoded(part, torch.arange(len(part) + 1, device="cpu") > 0) for part in parts]
    if strategy == "default" and sizes == [count - 1 for count in cells]:
        return [Encoded(part[1:]) for part in parts]
    raise ValueError(
        f"pixel_values: images of {list(cells)} cells, but the encoder made {sizes} tokens; patch "
        "size, image sizes or vision_feature_select_strategy do not describe these pixels"
    )


def setting(base: Any, call: Any, name: str) -> Any:
    """An argument of ``get_image_features``, or the model's own where it is None."""
    given = call.get(name)
    return getattr(base.config, name) if given is None else given
