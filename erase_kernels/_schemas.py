"""Schemas and shape functions of the private operators.

They exist with or without the native library and triton, whose kernels register under the same
names. One operator per implementation: ``<operator>_native`` for the CPU and CUDA kernels,
``<operator>_triton`` for the Triton ones; both have the same arguments and results. A composite
operator has one, ``<operator>_torch``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_kernels import _numerics

NAMESPACE = "erase_kernels"
IMPLEMENTATIONS = ("native", "triton")

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, fake: Callable[..., object]) -> None:
    """Defines one operator of the namespace with its shape function."""
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


_defined: dict[str, tuple[str, Callable[..., object]]] = {}  # operator -> signature, shapes


def define_each(operator: str, signature: str, fake: Callable[..., object]) -> None:
    """Defines ``<operator>_<implementation>`` for every implementation."""
    _defined[operator] = (signature, fake)
    for implementation in IMPLEMENTATIONS:
        define(f"{operator}_{implementation}{signature}", fake)


def define_all(implementation: str) -> None:
    """Defines every operator for one more implementation."""
    for operator, (signature, fake) in _defined.items():
        define(f"{operator}_{implementation}{signature}", fake)
    _register_autograd(implementation)


def implementation_of(operator: str, backend: str) -> Callable[..., Any]:
    """The private operator that runs ``operator`` on ``backend``."""
    return getattr(torch.ops.erase_kernels, f"{operator}_{backend}")  # type: ignore[no-any-return]


# --- entropy ---------------------------------------------------------------------------------


def _entropy_table_fake(cell_pixels: int, device: torch.device) -> Tensor:
    return torch.empty(cell_pixels + 1, dtype=torch.int64, device=device)


def _entropy_table(cell_pixels: int, device: torch.device) -> Tensor:
    # A copy: a compiled graph may reuse the memory of an operator's result.
    return _numerics.cached_entropy_table(cell_pixels, device).clone()


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


define("entropy_table(int cell_pixels, Device device) -> Tensor", _entropy_table_fake)
_library.impl("entropy_table", _entropy_table, "CompositeExplicitAutograd")
define_each(
    "patch_entropy",
    "(Tensor[] images, int patch_size, Tensor table) -> Tensor",
    _patch_entropy_fake,
)
define_each(
    "patch_entropy_from_pixels",
    "(Tensor pixel_values, Tensor table, int[] cell_sizes, "
    "int[] cell_strides, int[] pixel_sizes, int[] pixel_strides, int channel_stride, "
    "float[] mean, float[] std, float scale, float tolerance) -> Tensor",
    _patch_entropy_from_pixels_fake,
)


# --- edges: composed of torch operators --------------------------------------------------------


def _patch_edges_fake(images: Sequence[Tensor], patch_size: int) -> Tensor:
    return _patch_entropy_fake(images, patch_size, images[0])


def _patch_edges_from_pixels_fake(
    pixel_values: Tensor,
    cell_sizes: Sequence[int],
    cell_strides: Sequence[int],
    *geometry_and_statistics: object,
) -> Tensor:
    outer = pixel_values.numel() // cell_strides[0]
    cells = outer * cell_sizes[0] * cell_sizes[1]
    return pixel_values.new_empty(cells, dtype=torch.float32)


define("patch_edges_torch(Tensor[] images, int patch_size) -> Tensor", _patch_edges_fake)
define(
    "patch_edges_from_pixels_torch(Tensor pixel_values, int[] cell_sizes, int[] cell_strides, "
    "int[] pixel_sizes, int[] pixel_strides, int channel_stride, int segment_columns, int frames, "
    "float[] mean, float[] std, float scale, float tolerance) -> Tensor",
    _patch_edges_from_pixels_fake,
)


def implement_composite(operator: str, implementation: Callable[..., object]) -> None:
    """Makes ``implementation`` the one of a composite operator, on every device."""
    _library.impl(f"{operator}_torch", implementation, "CompositeExplicitAutograd")


# --- selection, scoring and compaction ---------------------------------------------------------


def _complexity_plan_fake(
    entropy: Tensor, offsets: Tensor, thresholds: Tensor, count_table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    images = offsets.shape[0] - 1
    return entropy.new_empty(images), offsets.new_empty(images), offsets.new_empty(images)


def _segmented_topk_fake(
    score: Tensor, offsets: Tensor, counts: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(capacity), torch.empty_like(offsets)


def _text_to_vision_scores_fake(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    column_offsets: Tensor,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    query_offset: int,
    normalize_over_columns: bool,
    per_head: bool,
) -> Tensor:
    shape = (query.shape[1], columns.shape[0]) if per_head else (columns.shape[0],)
    return query.new_empty(shape, dtype=torch.float32)


def _compact_kv_fake(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> None:
    return None


def _compact_kv_paged_fake(
    tensors: Sequence[Tensor], keep: Tensor, counts: Tensor, block_table: Tensor
) -> Tensor:
    return torch.empty_like(block_table)


def _compact_rows_fake(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> list[Tensor]:
    batch, width = keep.shape
    return [t.new_empty((*t.shape[:-3], batch, width, t.shape[-1])) for t in tensors]


define_each(
    "complexity_plan",
    "(Tensor entropy, Tensor offsets, Tensor thresholds, "
    "Tensor count_table) -> (Tensor, Tensor, Tensor)",
    _complexity_plan_fake,
)
define_each(
    "segmented_topk",
    "(Tensor score, Tensor offsets, Tensor counts, SymInt capacity) -> (Tensor, Tensor)",
    _segmented_topk_fake,
)
define_each(
    "text_to_vision_scores",
    "(Tensor query, Tensor key, Tensor rows, Tensor row_offsets, "
    "Tensor columns, Tensor column_offsets, Tensor? key_mask, float scale, bool causal, "
    "SymInt query_offset, bool normalize_over_columns, bool per_head) -> Tensor",
    _text_to_vision_scores_fake,
)
define_each(
    "compact_kv",
    "(Tensor(a!)[] tensors, Tensor keep, Tensor counts) -> ()",
    _compact_kv_fake,
)
define_each(
    "compact_kv_paged",
    "(Tensor(a!)[] tensors, Tensor keep, Tensor counts, Tensor block_table) -> Tensor",
    _compact_kv_paged_fake,
)
define_each(
    "compact_rows",
    "(Tensor[] tensors, Tensor keep, Tensor counts) -> Tensor[]",
    _compact_rows_fake,
)


def _save_for_compact_rows(
    ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, Tensor], output: object
) -> None:
    tensors, keep, counts = inputs
    ctx.save_for_backward(keep, counts)
    ctx.shapes = [t.shape for t in tensors]


def _compact_rows_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[object, ...]:
    """Adds the gradient of each kept row to the row it came from; other rows get zero."""
    keep, counts = ctx.saved_tensors
    valid = torch.arange(keep.shape[1], device=keep.device) < counts[:, None]  # [B, K]
    index = torch.where(valid, keep, 0).to(torch.int64)[..., None]  # padding adds zeros to row 0
    results: list[Tensor | None] = []
    for shape, gradient in zip(ctx.shapes, gradients, strict=True):
        if gradient is None:
            results.append(None)
            continue
        full = gradient.new_zeros((*shape[:-3], keep.shape[0], *shape[-2:]))
        if shape[-2] > 0:
            part = torch.where(valid[..., None], gradient, 0)
            full = full.scatter_add(-2, index.expand(part.shape), part)
        shared = shape[-3] == 1 and keep.shape[0] != 1
        results.append(full.sum(-3, keepdim=True) if shared else full)
    return results, None, None


def _register_autograd(implementation: str) -> None:
    torch.library.register_autograd(
        f"{NAMESPACE}::compact_rows_{implementation}",
        _compact_rows_backward,
        setup_context=_save_for_compact_rows,
        lib=_library,
    )


for _implementation in IMPLEMENTATIONS:
    _register_autograd(_implementation)
