"""Pixels that no image covers: the zeros that processors pad with need not be a gray level."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.hf.families._protocol import Statistics
from erase.transfer import upload


def black_padding(pixels: Tensor, image: Tensor, statistics: Statistics) -> Tensor:
    """``pixels`` [..., C, H, W] where ``image`` (bool, broadcast) is True, black elsewhere."""
    pairs = zip(statistics.mean, statistics.std, strict=True)
    black = upload([-mean / std for mean, std in pairs], pixels.dtype, pixels.device)
    return torch.where(image, pixels, black[:, None, None])
