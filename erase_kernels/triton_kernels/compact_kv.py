"""Kept slots of all layers' key/value caches move to the front, in place: one launch.

One program per (tensor, batch row, head, SLICE bytes of the row). It walks its kept slots upwards
in chunks of ROWS: while one chunk waits in registers to be stored, the next is being loaded, so
two chunks of every program are in flight. Programs never meet: their bytes are disjoint. Each
reads the whole keep list first (bad ones leave everything as it was): cheaper than a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_kernels._status import status_word
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._compact_kv_kernels import (
    MARK_SIZES,
    SIZES,
    compact_kv_kernel,
    mark_users_kernel,
)
from erase_kernels.triton_kernels._moves import (
    ELEMENTS,
    WIDEST_UNIT,
    by_value,
    element_bytes,
    unit_of,
)

BUCKETS = (2, 8, 32, 64, 128)  # addresses of a launch: the last is repeated up to one of these
MARK_CHECK = 1024  # table entries of a program
MARK_OPTIONS = {"num_warps": 4, "num_stages": 1}
LARGEST_SLOT = 2**31 - 1  # keep is int32


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What tensors of one launch have in common; strides in elements of the unit."""

    unit: int
    units: int
    heads: int
    outer_stride: int
    head_stride: int
    slot_stride: int


def _kind(tensor: Tensor, addresses: Sequence[int], head: int, slot: int) -> _Kind:
    """Of tensors that have the shape, strides and dtype of ``tensor``."""
    size = tensor.element_size()
    strides = [tensor.stride(i) * size if tensor.shape[i] > 1 else 0 for i in (0, head, slot)]
    row = tensor.shape[3] * size
    unit = unit_of([row, *strides, *addresses])
    outer, heads, slots = (stride // element_bytes(unit) for stride in strides)
    return _Kind(unit, row // unit, tensor.shape[head], outer, heads, slots)


def _launches(
    tensors: Sequence[Tensor], keep: Tensor, head: int, slot: int
) -> Iterator[tuple[_Kind, list[int]]]:
    """Tensors of one kind, by address, as many as one launch takes."""
    places: dict[int, int] = {}
    layouts: dict[object, tuple[Tensor, list[int]]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.numel() == 0:
            continue
        address = tensor.data_ptr()
        first = places.setdefault(address, i)
        if first != i:
            raise ValueError(
                "tensors: expected tensors that share no memory, got the same memory at places "
                f"{first} and {i}"
            )
        layout = (tensor.dtype, tensor.shape, tensor.stride())
        layouts.setdefault(layout, (tensor, []))[1].append(address)
    if not layouts:  # the lists are checked all the same
        yield _Kind(WIDEST_UNIT, 0, 1, 0, 0, 0), [keep.data_ptr()]
    for tensor, addresses in layouts.values():
        for start in range(0, len(addresses), BUCKETS[-1]):
            members = addresses[start : start + BUCKETS[-1]]
            yield _kind(tensor, members, head, slot), members


def _shape_class(unit: int) -> str:
    return "wide" if unit >= 4 else "narrow"


def _constexprs(bucket: int, paged: bool, unit: int, config: _launch.Config) -> dict[str, Any]:
    fixed = {"N": bucket, "PAGED": paged, "UNIT": unit, "ELEMENT": ELEMENTS[unit]}
    return {**fixed, **config.constexprs}


def _move(
    operator: str,
    tensors: Sequence[Tensor],
    dimensions: tuple[int, int],  # of heads, of slots
    keep: Tensor,
    arguments: Mapping[str, Any],
) -> None:
    """One launch for each kind of tensors."""
    paged = operator == "compact_kv_paged"
    architecture = _launch.architecture(keep.device)
    batch, width = keep.shape
    for kind, addresses in _launches(tensors, keep, *dimensions):
        config = _launch.config(operator, _shape_class(kind.unit), architecture)
        bucket = next(size for size in BUCKETS if size >= len(addresses))
        slices = _launch.cdiv(max(kind.units, 1) * kind.unit, config.constexprs["SLICE"])
        compact_kv_kernel[(batch * len(addresses) * kind.heads * slices,)](
            addresses=by_value(addresses, bucket),
            p_keep=keep,
            p_status=status_word(keep.device),
            tensors=len(addresses),
            heads=kind.heads,
            slices=slices,
            units=kind.units,
            width=width,
            outer_stride=kind.outer_stride,
            head_stride=kind.head_stride,
            slot_stride=kind.slot_stride,
            **arguments,
            **_constexprs(bucket, paged, kind.unit, config),
            **config.options,
        )


def compact_kv(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> None:
    """See `erase_kernels.compact_kv_`, contiguous. Bad batch rows stay as they are."""
    if keep.shape[0] == 0:
        return
    unused = {"p_table": keep, "p_users": keep, "p_freed": keep}
    unused_sizes = {"block_size": 1, "blocks": 0, "table_width": 0}
    length = min(tensor.shape[2] for tensor in tensors)
    with _launch.on(keep.device):
        arguments = {"p_counts": counts, "length": length, **unused, **unused_sizes}
        _move("compact_kv", tensors, (1, 2), keep, arguments)


def compact_kv_paged(
    tensors: Sequence[Tensor], keep: Tensor, counts: Tensor, block_table: Tensor
) -> Tensor:
    """See `erase_kernels.compact_kv_`, paged. Bad batch rows stay as they are and free nothing.

    Two launches after a memset: the first counts how often each block is used, so that a block in
    two places makes both batch rows bad, in whichever order programs run.
    """
    freed = torch.empty_like(block_table)
    batch, table_width = block_table.shape
    if batch == 0:
        return freed
    blocks = min(tensor.shape[0] for tensor in tensors)
    block_size = tensors[0].shape[1]
    users = torch.zeros(max(blocks, 1), dtype=torch.int32, device=keep.device)
    common = {
        "p_counts": counts,
        "p_table": block_table,
        "p_users": users,
        "block_size": block_size,
        "blocks": blocks,
        "table_width": table_width,
    }
    with _launch.on(keep.device):
        mark_users_kernel[(batch, max(1, _launch.cdiv(table_width, MARK_CHECK)))](
            p_keep=keep, width=keep.shape[1], **common, CHECK=MARK_CHECK, **MARK_OPTIONS
        )
        length = min(table_width * block_size, LARGEST_SLOT)
        arguments = {"p_freed": freed, "length": length, **common}
        _move("compact_kv_paged", tensors, (2, 1), keep, arguments)
    return freed


def _signature(names: Sequence[str], constexprs: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {name: "*i32" if name.startswith("p_") else "i32" for name in names}
    return {**sizes, **dict.fromkeys(constexprs, "constexpr")}


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every unit and number of addresses, contiguous and paged."""
    found = []
    for operator in ("compact_kv", "compact_kv_paged"):
        for unit in ELEMENTS:
            config = _launch.config(operator, _shape_class(unit), architecture)
            for bucket in BUCKETS if unit == 16 else BUCKETS[:1]:
                constexprs = _constexprs(bucket, operator == "compact_kv_paged", unit, config)
                found.append(
                    _launch.Compilation(
                        name=f"{operator} {_shape_class(unit)} {unit} bytes, {bucket} tensors",
                        kernel=compact_kv_kernel,
                        signature={
                            "addresses": ("i64",) * bucket,
                            **_signature(SIZES, constexprs),
                        },
                        constexprs=constexprs,
                        options=config.options,
                        unaligned=tuple(SIZES),
                    )
                )
    check = {"CHECK": MARK_CHECK}
    signature = _signature(MARK_SIZES, check)
    name = "compact_kv_paged users"
    found.append(
        _launch.Compilation(
            name, mark_users_kernel, signature, check, MARK_OPTIONS, tuple(MARK_SIZES)
        )
    )
    return found
