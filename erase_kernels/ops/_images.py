"""The images that operators on patches take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erase_kernels._checks import check, check_tensor, refuse


def check_images(image: Tensor | Sequence[Tensor], patch_size: int) -> list[Tensor]:
    """``image`` as a list of at least one uint8 image on one device, cut evenly by the patches."""
    images = [image] if isinstance(image, Tensor) else _as_list(image)
    for item in images:
        _check_image(item, patch_size)
    device = images[0].device
    for item in images[1:]:
        check(item.device == device, "image", f"every image on {device}", item.device)
    return images


def _as_list(image: Sequence[Tensor]) -> list[Tensor]:
    expected = "a uint8 tensor or a sequence of them"
    check(isinstance(image, Sequence), "image", expected, type(image).__name__, TypeError)
    check(len(image) > 0, "image", "at least one image", "an empty sequence")
    return list(image)


def _check_image(image: Tensor, patch_size: int) -> None:
    check_tensor(image, "image")
    check(image.dtype == torch.uint8, "image", "dtype torch.uint8", image.dtype, TypeError)
    shape = tuple(image.shape)
    ranks = image.dim() == 2 or (image.dim() == 3 and image.shape[0] in (1, 3))
    check(ranks, "image", "shape [3, H, W], [1, H, W] or [H, W]", shape)
    multiple = image.shape[-2] % patch_size == 0 and image.shape[-1] % patch_size == 0
    if not multiple:  # the message is only made when needed: a tracer may hold a symbolic size
        refuse("image", f"H and W to be multiples of patch_size={patch_size}", shape)
