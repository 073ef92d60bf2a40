"""Index arithmetic between token masks and gather indices, without reading anything on the host.

Rows of a ragged batch are packed to the front: slot j of row b is the j-th kept token of that row,
and slots from ``counts[b]`` on are empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from erase.transfer import moved, upload
from erase_kernels import compact_kv_, compact_rows


def offsets_of(counts: Sequence[int], device: torch.device) -> Tensor:
    """Exclusive prefix sums with the total at the end, i32 [len(counts) + 1]."""
    return upload([0, *accumulate(counts)], torch.int32, device)


def int32(values: Sequence[int], device: torch.device) -> Tensor:
    """A small i32 vector on ``device``."""
    return upload(list(values), torch.int32, device)


def pack_index(mask: Tensor, width: int) -> Tensor:
    """Ascending positions of the True entries of each row of ``mask`` [B, S]: i32 [B, width].

    Entries after a row's last True are 0. ``width`` is at least the largest count of a row.
    """
    batch, length = mask.shape
    # True entries go to their rank, the others to a spare slot that is cut off.
    rank = mask.cumsum(1) - 1
    slot = torch.where(mask, rank, width)
    steps = torch.arange(length, dtype=torch.int32, device=mask.device).expand(batch, length)
    packed = torch.zeros(batch, width + 1, dtype=torch.int32, device=mask.device)
    return packed.scatter_(1, slot, steps)[:, :width].contiguous()


def flat_index(mask: Tensor, total: int) -> Tensor:
    """Columns of the ``total`` True entries of ``mask`` [B, S], row after row: i32 [total]."""
    batch, length = mask.shape
    flat = pack_index(mask.reshape(1, batch * length), total)[0]
    return flat % length


def take(plane: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Rows ``index`` [B, K] of a ``[..., B, S]`` tensor: ``[..., B, K]``, zero after ``counts``."""
    return gather_rows([plane.unsqueeze(-1)], index, counts)[0].squeeze(-1)


def gather_rows(tensors: Sequence[Tensor], index: Tensor, counts: Tensor) -> list[Tensor]:
    """``compact_rows`` of tensors on any devices; each result stays on its tensor's device.

    The layers of a model may be spread over devices, and torch's hooks run before a layer's inputs
    are brought to it.
    """
    out = list(tensors)
    for places, group, here in by_device(tensors, index, counts):
        for place, gathered in zip(places, compact_rows(group, *here), strict=True):
            out[place] = gathered
    return out


def gather_slots_(planes: Sequence[Tensor], index: Tensor, counts: Tensor) -> None:
    """``compact_kv_`` of planes on any devices."""
    for _, group, here in by_device(planes, index, counts):
        compact_kv_(group, *here)


def by_device(
    tensors: Sequence[Tensor], *vectors: Tensor
) -> Iterator[tuple[list[int], list[Tensor], list[Tensor]]]:
    """For each device: the places of its tensors, these tensors, and ``vectors`` brought there."""
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    for device, group in places.items():
        yield group, [tensors[i] for i in group], [moved(v, device) for v in vectors]


def owners_of(counts: Sequence[int], device: torch.device) -> Tensor:
    """Number of the segment that each of ``sum(counts)`` entries belongs to: i64 [sum]."""
    steps = torch.arange(len(counts), device=device)
    return torch.repeat_interleave(steps, int32(counts, device), output_size=sum(counts))


def chosen_flags(chosen: Tensor, offsets: Tensor, counts: Sequence[int], total: int) -> Tensor:
    """bool [total]: True at the chosen entries of each segment.

    Args:
        chosen: i32 [sum(counts)], indices local to their segments, segment after segment.
        offsets: i32 [len(counts) + 1], where segments start.
        counts: how many are chosen in each segment.
        total: entries of all segments.
    """
    starts = offsets[owners_of(counts, offsets.device)]
    flags = torch.zeros(total, dtype=torch.bool, device=offsets.device)
    # Not by assignment, which would copy its value to the device and wait.
    return flags.index_fill_(0, (chosen + starts).to(torch.int64), True)


def filled(counts: Tensor, width: int) -> Tensor:
    """bool [B, width]: True in the first ``counts[b]`` slots of row b."""
    return torch.arange(width, device=counts.device) < counts[:, None]
