"""One plain torch implementation per operator: this file defines "correct"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from erase_kernels._numerics import (
    ENTROPY_UNIT,
    GRAY_LEVELS,
    LUMA_BLUE,
    LUMA_GREEN,
    LUMA_RED,
)

# --- entropy ---------------------------------------------------------------------------------


def luma(levels: Tensor, channel_dim: int) -> Tensor:
    """Gray level of each pixel, ``floor((0.299 R + 0.587 G) + 0.114 B)``.

    Float32, every product and sum rounded before the next. One channel is used as it is.

    Args:
        levels: uint8 with 1 or 3 channels along ``channel_dim``.
        channel_dim: the dimension that goes.

    Returns:
        uint8.
    """
    if levels.shape[channel_dim] == 1:
        return levels.squeeze(channel_dim)
    red, green, blue = levels.to(torch.float32).unbind(channel_dim)
    gray = (red * LUMA_RED + green * LUMA_GREEN) + blue * LUMA_BLUE
    return torch.floor(gray).to(torch.uint8)


def histograms(gray: Tensor) -> Tensor:
    """Counts of the 256 gray levels: uint8 ``[n, N]`` -> int64 ``[n, 256]``."""
    counts = torch.zeros(gray.shape[0], GRAY_LEVELS, dtype=torch.int64, device=gray.device)
    index = gray.to(torch.int64)
    return counts.scatter_add_(1, index, torch.ones_like(index))


def entropy_of_counts(
    counts: Tensor,  # int64 [n, 256]
    table: Tensor,  # int64 [N + 1]
) -> Tensor:  # f32 [n]
    """Shannon entropy in nats, summed in integers of ``2**-40`` nats and rounded once."""
    total = table[counts].sum(dim=1)
    return (table[-1] - total).to(torch.float32) * ENTROPY_UNIT


def patch_entropy(images: Sequence[Tensor], patch_size: int, table: Tensor) -> Tensor:
    """See `erase_kernels.patch_entropy`."""
    grays = []
    for image in images:
        planes = image if image.dim() == 3 else image.unsqueeze(0)
        blocks = F.pixel_unshuffle(luma(planes, 0).unsqueeze(0), patch_size)  # [N, H/p, W/p]
        grays.append(blocks.flatten(1).t())
    gray = torch.cat(grays)
    return entropy_of_counts(histograms(gray), table.to(gray.device))


def patch_entropy_of_levels(
    levels: Tensor,  # uint8 [n, C, N], as PixelLayout.recover returns
    table: Tensor,  # int64 [N + 1]
) -> Tensor:  # f32 [n]
    """See `erase_kernels.patch_entropy_from_pixels`."""
    return entropy_of_counts(histograms(luma(levels, 1)), table.to(levels.device))
