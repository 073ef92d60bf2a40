"""Kept rows of hidden states, rotary tables and the like, into new tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_tensors, check_vector, refuse

ELEMENT_BYTES = (1, 2, 4, 8)


def compact_rows(
    tensors: Sequence[Tensor],  # each [..., B, S, D] or [..., 1, S, D]
    keep: Tensor,  # i32 [B, K]
    counts: Tensor,  # i32 [B]
    *,
    backend: str | None = None,
) -> list[Tensor]:
    """Gathers the kept rows of every tensor into a new one, with zeros after the last.

    ``out[..., b, i, :] = tensor[..., b, keep[b, i], :]`` for ``i < counts[b]``, else 0. A tensor
    of batch size 1 is shared by all B batch rows. Differentiable: the gradient of a kept row goes
    back to it, every other row gets 0.

    Args:
        tensors: ``[..., B, S, D]`` each, any leading dimensions and strides, any dtype of 1, 2, 4
            or 8 bytes; leading dimensions, S, D and dtype may differ between tensors.
        keep: int32 ``[B, K]``, kept rows of each batch row, strictly ascending; entries from
            ``counts[b]`` on are ignored.
        counts: int32 ``[B]``, kept rows of each batch row.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        One contiguous ``[..., B, K, D]`` per tensor, of its dtype.

    Raises:
        TypeError: not tensors, or wrong dtypes.
        ValueError: no tensor, wrong shapes, several devices, rows out of range or not ascending,
            unknown backend.
        RuntimeError: the backend is not available here.

    On CUDA devices bad rows and counts are not raised here, for that would make the host wait: a
    bad row, and all rows of a bad count, come out as 0, and `check_status` raises.

    Source:
        ERASE, sections 3.2 and 3.3 (pruned tokens leave the hidden states; positions stay).
    """
    items = check_tensors(tensors, "tensors")
    device = items[0].device
    check_vector(keep, "keep", torch.int32, (None, None), device)
    check_vector(counts, "counts", torch.int32, (keep.shape[0],), device)
    for item in items:
        _check_rows(item, keep.shape[0], device)
    keep, counts = keep.contiguous(), counts.contiguous()
    chosen = _backends.choose("compact_rows", device, backend)
    if chosen == "reference":
        return reference.compact_rows(items, keep, counts)
    return list(_schemas.implementation_of("compact_rows", chosen)(items, keep, counts))


def _check_rows(item: Tensor, batch: int, device: torch.device) -> None:
    if item.device != device:
        refuse("tensors", f"every tensor on {device}", item.device)
    if item.element_size() not in ELEMENT_BYTES:
        refuse("tensors", f"elements of {ELEMENT_BYTES} bytes", item.dtype, TypeError)
    if item.dim() < 3 or (item.shape[-3] != batch and item.shape[-3] != 1):
        refuse("tensors", f"shape [..., {batch} or 1, rows, features]", tuple(item.shape))
