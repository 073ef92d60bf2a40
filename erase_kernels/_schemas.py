"""Schemas and shape functions of the private operators.

They exist with or without the native library, whose kernels register themselves under the same
names. One operator per implementation: ``<operator>_native`` for the CPU and CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from erase_kernels import _numerics

NAMESPACE = "erase_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, fake: Callable[..., object]) -> None:
    """Defines one operator of the namespace with its shape function."""
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


# --- entropy ---------------------------------------------------------------------------------


def _entropy_table_fake(cell_pixels: int) -> Tensor:
    return torch.empty(cell_pixels + 1, dtype=torch.int64, device="cpu")


def _entropy_table(cell_pixels: int) -> Tensor:
    # A copy: a compiled graph may reuse the memory of an operator's result.
    return _numerics.cached_entropy_table(cell_pixels).clone()


def _patch_entropy_fake(images: Sequence[Tensor], patch_size: int, table: Tensor) -> Tensor:
    cells = sum((i.shape[-2] // patch_size) * (i.shape[-1] // patch_size) for i in images)
    return images[0].new_empty(cells, dtype=torch.float32)


def _patch_entropy_from_pixels_fake(
    pixel_values: Tensor,
    table: Tensor,
    cell_sizes: Sequence[int],
    cell_strides: Sequence[int],
    pixel_sizes: Sequence[int],
    pixel_strides: Sequence[int],
    channel_stride: int,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
    tolerance: float,
) -> Tensor:
    outer = pixel_values.numel() // cell_strides[0]
    cells = outer * cell_sizes[0] * cell_sizes[1]
    return pixel_values.new_empty(cells, dtype=torch.float32)


define("entropy_table(int cell_pixels) -> Tensor", _entropy_table_fake)
_library.impl("entropy_table", _entropy_table, "CompositeExplicitAutograd")
define(
    "patch_entropy_native(Tensor[] images, int patch_size, Tensor table) -> Tensor",
    _patch_entropy_fake,
)
define(
    "patch_entropy_from_pixels_native(Tensor pixel_values, Tensor table, int[] cell_sizes, "
    "int[] cell_strides, int[] pixel_sizes, int[] pixel_strides, int channel_stride, "
    "float[] mean, float[] std, float scale, float tolerance) -> Tensor",
    _patch_entropy_from_pixels_fake,
)
