"""Kept rows of several tensors into new ones, zeros behind them: one launch for all of them.

One program per UNITS units of output rows: one piece of a long row, or several short rows. A unit
is what one thread copies at once, 16 bytes where addresses allow. A tensor whose leading dimensions
have one common stride is one entry of the launch, else several. Every program checks the part of
the keep list that it reads, and its neighbour before: nobody reads the whole list.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._moves import ELEMENTS, by_value, element_bytes, pick, unit_of

COUNTS = tl.constexpr(int(Status.COUNTS))
KEEP = tl.constexpr(int(Status.KEEP))
BUCKETS = (1, 4, 16)  # entries of a launch: the last is repeated up to one of these
LARGEST = 2**31 - 1  # keep is int32

# fmt: off
POINTERS = ["p_keep", "p_counts", "p_status"]
TUPLES = [
    "starts", "sources", "targets", "row_units", "lengths", "row_strides", "batch_strides",
    "plane_strides",
]
# fmt: on


@triton.jit
def entry_of(task, starts, N: tl.constexpr):
    """The entry that program ``task`` works for: the last that starts no later."""
    i_entry = task * 0
    for n in tl.static_range(1, N):
        i_entry += tl.where(task >= (starts[n].to(tl.int64) - 3) >> 1, 1, 0)
    return i_entry


@triton.jit(do_not_specialize=[*POINTERS, "batch", "width"])
def compact_rows_kernel(
    starts,
    sources,
    targets,
    row_units,
    lengths,
    row_strides,
    batch_strides,
    plane_strides,
    p_keep,
    p_counts,
    p_status,
    batch,
    width,
    N: tl.constexpr,
    UNIT: tl.constexpr,
    ELEMENT: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Strides count ELEMENTs, ``row_units`` and UNITS units of UNIT bytes. See `_Entry`."""
    PAIR: tl.constexpr = UNIT // (ELEMENT.primitive_bitwidth // 8)
    task = tl.program_id(0)
    i_entry = entry_of(task, starts, N)
    units = pick(row_units, i_entry, N).to(tl.int32)
    length = pick(lengths, i_entry, N).to(tl.int32)
    # Pieces of a row, rows of a program, programs of a plane.
    piece = tl.maximum(tl.minimum(units, UNITS), 1)
    pieces = tl.maximum((units + UNITS - 1) // UNITS, 1)
    rows = UNITS // piece
    strips = tl.maximum((width + rows - 1) // rows, 1)
    local = task - pick(starts, i_entry, N).to(tl.int32)
    i_piece = local % pieces
    i_strip = local // pieces % strips
    i_batch = (local // pieces // strips % batch).to(tl.int64)
    i_plane = (local // pieces // strips // batch).to(tl.int64)

    count = tl.load(p_counts + i_batch)
    if (count < 0) | (count > width):
        tl.atomic_or(p_status, COUNTS, sem="relaxed")
        count = 0
    o_unit = tl.arange(0, UNITS)
    o_column = i_piece * UNITS + o_unit % piece
    i_row = i_strip * rows + o_unit // piece
    m_row = (o_unit // piece < rows) & (i_row < width)
    m_kept = m_row & (i_row < count)
    p_slot = p_keep + i_batch * width + i_row
    b_slot = tl.load(p_slot, mask=m_kept, other=0)
    b_before = tl.load(p_slot - 1, mask=m_kept & (i_row > 0), other=-1)
    m_bad = m_kept & ((b_slot < 0) | (b_slot >= length) | (b_slot <= b_before))

    m_column = o_column < units
    o_pair = tl.arange(0, PAIR)
    p_source = pick(sources, i_entry, N).to(tl.pointer_type(ELEMENT))
    p_source += i_plane * pick(plane_strides, i_entry, N)
    p_source += i_batch * pick(batch_strides, i_entry, N)
    b_from = b_slot.to(tl.int64) * pick(row_strides, i_entry, N) + o_column * PAIR
    p_from = tl.multiple_of(p_source + b_from[:, None] + o_pair[None, :], (UNIT, UNIT))
    b_unit = tl.load(p_from, mask=(m_kept & ~m_bad & m_column)[:, None], other=0)
    p_target = pick(targets, i_entry, N).to(tl.pointer_type(ELEMENT))
    p_target += (i_plane * batch + i_batch) * width * units * PAIR
    b_to = i_row.to(tl.int64) * units * PAIR + o_column * PAIR
    p_to = tl.multiple_of(p_target + b_to[:, None] + o_pair[None, :], (UNIT, UNIT))
    tl.store(p_to, b_unit, mask=(m_row & m_column)[:, None])
    tl.atomic_or(p_status + tl.zeros_like(b_slot), KEEP, mask=m_bad, sem="relaxed")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Planes ``[planes, B or 1, length, row]`` of one tensor, and where they go; all in bytes."""

    source: int  # address
    target: int  # address
    planes: int
    length: int
    row: int
    plane_stride: int
    batch_stride: int
    row_stride: int

    def unit(self) -> int:
        strides = (self.plane_stride, self.batch_stride, self.row_stride)
        return unit_of((self.source, self.target, self.row, *strides))


def _collapse(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The fewest (size, stride) with the same addresses in the same order."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged or [(1, 0)]


def _entries(tensor: Tensor, out: Tensor) -> Iterator[_Entry]:
    """Entries of one tensor whose rows have unit stride."""
    size = tensor.element_size()
    row = tensor.shape[-1] * size
    length = min(tensor.shape[-2], LARGEST)
    if tensor.numel() == 0 or out.numel() == 0:  # no row to read, but zeros and bad lists
        planes = math.prod(tensor.shape[:-3]) if out.numel() > 0 else 1
        row = row if out.numel() > 0 else 0
        yield _Entry(out.data_ptr(), out.data_ptr(), planes, length, row, 0, 0, 0)
        return
    *strides, batch_stride, row_stride, _ = (stride * size for stride in tensor.stride())
    batch_stride = batch_stride if tensor.shape[-3] > 1 else 0
    row_stride = row_stride if tensor.shape[-2] > 1 else 0
    *outer, (planes, plane_stride) = _collapse(tensor.shape[:-3], strides)
    part = out.numel() * size // math.prod(count for count, _ in outer)
    for i, place in enumerate(itertools.product(*(range(count) for count, _ in outer))):
        source = tensor.data_ptr()
        source += sum(at * stride for at, (_, stride) in zip(place, outer, strict=True))
        target = out.data_ptr() + i * part
        yield _Entry(source, target, planes, length, row, plane_stride, batch_stride, row_stride)


def _constexprs(bucket: int, unit: int, config: _launch.Config) -> dict[str, Any]:
    return {"N": bucket, "UNIT": unit, "ELEMENT": ELEMENTS[unit], **config.constexprs}


def _programs(entry: _Entry, unit: int, batch: int, width: int, units_of_program: int) -> int:
    """Programs of one entry, as the kernel counts them."""
    units = entry.row // unit
    rows = units_of_program // max(min(units, units_of_program), 1)
    pieces = max(_launch.cdiv(units, units_of_program), 1)
    programs: int = entry.planes * batch * max(_launch.cdiv(width, rows), 1) * pieces
    return programs


def _copy(entries: Sequence[_Entry], unit: int, keep: Tensor, counts: Tensor) -> None:
    """One launch."""
    batch, width = keep.shape
    config = _launch.config("compact_rows", _shape_class(unit), _launch.architecture(keep.device))
    bucket = next(size for size in BUCKETS if size >= len(entries))
    element = element_bytes(unit)
    units = config.constexprs["UNITS"]
    ends = list(itertools.accumulate(_programs(x, unit, batch, width, units) for x in entries))
    columns = {
        "starts": [0, *ends[:-1]],
        "sources": [x.source for x in entries],
        "targets": [x.target for x in entries],
        "row_units": [x.row // unit for x in entries],
        "lengths": [x.length for x in entries],
        "row_strides": [x.row_stride // element for x in entries],
        "batch_strides": [x.batch_stride // element for x in entries],
        "plane_strides": [x.plane_stride // element for x in entries],
    }
    compact_rows_kernel[(ends[-1],)](
        **{name: by_value(values, bucket) for name, values in columns.items()},
        p_keep=keep,
        p_counts=counts,
        p_status=status_word(keep.device),
        batch=batch,
        width=width,
        **_constexprs(bucket, unit, config),
        **config.options,
    )


def _shape_class(unit: int) -> str:
    return "wide" if unit >= 8 else "narrow"


def compact_rows(tensors: Sequence[Tensor], keep: Tensor, counts: Tensor) -> list[Tensor]:
    """See `erase_kernels.compact_rows`.

    Bad data: a batch row with a bad count is all zeros, a slot outside the tensor or not above the
    one before is a row of zeros. Tensors whose last dimension is not the unit stride are copied
    first.
    """
    batch, width = keep.shape
    # All copies live until the launches are under way, or the results would be put in their place.
    plain = [x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous() for x in tensors]
    results = [
        torch.empty((*x.shape[:-3], batch, width, x.shape[-1]), dtype=x.dtype, device=x.device)
        for x in tensors
    ]
    by_unit: dict[int, list[_Entry]] = {}
    for tensor, out in zip(plain, results, strict=True):
        for entry in _entries(tensor, out):
            by_unit.setdefault(entry.unit(), []).append(entry)
    with _launch.on(keep.device):
        for unit, entries in by_unit.items() if batch > 0 else ():
            for start in range(0, len(entries), BUCKETS[-1]):
                _copy(entries[start : start + BUCKETS[-1]], unit, keep, counts)
    return results


def compilations(architecture: int) -> list[_launch.Compilation]:
    """Every unit and number of entries."""
    found = []
    for unit in ELEMENTS:
        config = _launch.config("compact_rows", _shape_class(unit), architecture)
        for bucket in BUCKETS if unit == 16 else BUCKETS[1:2]:
            constexprs = _constexprs(bucket, unit, config)
            addresses = dict.fromkeys(TUPLES, ("i32",) * bucket)
            addresses |= dict.fromkeys(("sources", "targets"), ("i64",) * bucket)
            pointers = {"p_keep": "*i32", "p_counts": "*i32", "p_status": "*i32"}
            found.append(
                _launch.Compilation(
                    name=f"compact_rows {_shape_class(unit)} {unit} bytes, {bucket} tensors",
                    kernel=compact_rows_kernel,
                    signature={
                        **addresses,
                        **pointers,
                        "batch": "i32",
                        "width": "i32",
                        **dict.fromkeys(constexprs, "constexpr"),
                    },
                    constexprs=constexprs,
                    options=config.options,
                    unaligned=tuple(pointers),
                )
            )
    return found
