"""In-place compaction of key/value caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_tensors, check_vector, refuse


def compact_kv_(
    tensors: Sequence[Tensor],  # each [B, Hk, L, d], or [blocks, block_size, Hk, d]
    keep: Tensor,  # i32 [B, K]
    counts: Tensor,  # i32 [B]
    *,
    block_table: Tensor | None = None,  # i32 [B, M]
    backend: str | None = None,
) -> Tensor | None:
    """Moves the kept slots of key/value caches to the front, in place, for all layers in one call.

    ``tensors[t][b, :, i] = tensors[t][b, :, keep[b, i]]`` for ``i < counts[b]``, done upwards in
    the same storage; kept slots ascend, so a slot never moves up. What lies behind the last kept
    slot is undefined (mask it, or narrow the view). Memory outside the slots of the given views is
    not touched. A raised error leaves every tensor as it was.

    With ``block_table`` the tensors are paged: slot ``s`` of batch row ``b`` lies in block
    ``block_table[b, s // block_size]`` at place ``s % block_size``.

    Args:
        tensors: the caches of all layers, K and V, MUTATED. Any dtype; unit stride on the last
            dimension, any other strides. Contiguous: ``[B, Hk, L, d]``, where Hk, L, d and dtype
            may differ. Paged: ``[blocks, block_size, Hk, d]``, one block size, where the number
            of blocks, Hk, d and dtype may differ. They share no memory.
        keep: int32 ``[B, K]``, kept slots of each batch row, strictly ascending; entries from
            ``counts[b]`` on are ignored.
        counts: int32 ``[B]``, kept slots of each batch row.
        block_table: int32 ``[B, M]``, block of each stretch of slots, -1 for none; or None.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        None; with ``block_table`` int32 ``[B, M]`` of the blocks that hold no kept slot any more:
        entry ``j`` of the table where ``j >= ceil(counts[b] / block_size)``, else -1.

    Raises:
        TypeError: not tensors, or wrong dtypes.
        ValueError: no tensor, wrong shapes or strides, several devices, tensors that share memory
            or need a gradient, slots out of range or not ascending, a block that does not exist
            or is used twice, unknown backend.
        RuntimeError: the backend is not available here.

    On CUDA devices bad slots, counts and blocks are not raised here, for that would make the host
    wait: nothing of their batch rows is moved, and `check_status` raises.

    Source:
        ERASE, section 3.5.1 (pruned tokens leave the caches of the layers that ran).
    """
    items = check_tensors(tensors, "tensors")
    device = items[0].device
    check_vector(keep, "keep", torch.int32, (None, None), device)
    check_vector(counts, "counts", torch.int32, (keep.shape[0],), device)
    for item in items:
        _check_cache(item, device)
    if block_table is None:
        for item in items:
            if item.shape[0] != keep.shape[0]:
                expected = f"batch size {keep.shape[0]}, as keep has"
                refuse("tensors", expected, tuple(item.shape))
    else:
        check_vector(block_table, "block_table", torch.int32, (keep.shape[0], None), device)
        block_table = block_table.contiguous()
        for item in items:
            if item.shape[1] != items[0].shape[1] or item.shape[1] == 0:
                refuse("tensors", "the same block size > 0 everywhere", tuple(item.shape))
    chosen = _backends.choose("compact_kv_", device, backend)
    freed = _compact(chosen, items, keep.contiguous(), counts.contiguous(), block_table)
    if not torch.compiler.is_compiling():
        # Autograd must see the change where one of the tensors was saved for a backward pass.
        torch.autograd.graph.increment_version([x for x in items if not x.is_inference()])
    return freed


def _compact(
    backend: str, tensors: list[Tensor], keep: Tensor, counts: Tensor, block_table: Tensor | None
) -> Tensor | None:
    if backend == "reference":
        if block_table is None:
            reference.compact_kv(tensors, keep, counts)
            return None
        return reference.compact_kv_paged(tensors, keep, counts, block_table)
    if block_table is None:
        _schemas.implementation_of("compact_kv", backend)(tensors, keep, counts)
        return None
    run = _schemas.implementation_of("compact_kv_paged", backend)
    return run(tensors, keep, counts, block_table)  # type: ignore[no-any-return]


def _check_cache(item: Tensor, device: torch.device) -> None:
    if item.device != device:
        refuse("tensors", f"every tensor on {device}", item.device)
    if item.dim() != 4:
        refuse("tensors", "four dimensions", tuple(item.shape))
    if item.shape[3] > 1 and item.stride(3) != 1:
        refuse("tensors", "unit stride on the last dimension", item.stride())
    if any(item.stride(i) == 0 and item.shape[i] > 1 for i in range(3)):
        refuse("tensors", "no expanded dimension", item.stride())
    if item.requires_grad and torch.is_grad_enabled():
        refuse("tensors", "no gradient (compaction in place has none)", "requires_grad=True")
