"""The best scores of each segment, as ascending indices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_int, check_vector


class SegmentedTopK(NamedTuple):
    """What `segmented_topk` selects from I segments."""

    indices: Tensor  # i32 [capacity], local to their segment, ascending within it, -1 after the end
    offsets: Tensor  # i32 [I + 1], first entry of each segment in indices


def segmented_topk(
    score: Tensor,  # f32 [n]
    offsets: Tensor,  # i32 [I + 1]
    counts: Tensor,  # i32 [I]
    capacity: int,
    *,
    backend: str | None = None,
) -> SegmentedTopK:
    """Selects the ``counts[i]`` highest scores of each segment.

    Order: (score descending, index ascending), so ties go to the LOWEST index; -0 equals +0 and
    NaN ranks below -inf. The result does not depend on the backend.

    Args:
        score: float32 ``[n]``, segments one after the other.
        offsets: int32 ``[I + 1]``, first score of each segment; starts at 0, never falls, ends
            at n.
        counts: int32 ``[I]``, how many to keep, between 0 and the segment's length.
        capacity: length of the returned indices, at least ``sum(counts)``; known on the host, so
            that nothing waits for the device.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        `SegmentedTopK` of indices (int32 ``[capacity]``: local to their segment, ascending within
        it, segment after segment, -1 after the last) and offsets (int32 ``[I + 1]``).

    Raises:
        TypeError: not tensors, wrong dtypes, or ``capacity`` not an int.
        ValueError: wrong shapes, several devices, bad offsets, a count outside its segment,
            ``capacity`` too small, unknown backend.
        RuntimeError: the backend is not available here.

    On CUDA devices bad offsets, counts and a small capacity are not raised here, for that would
    make the host wait: segments they spoil get -1, and `check_status` raises.

    Source:
        ERASE, sections 3.2 and 3.3 (both stages keep the tokens of highest score).
    """
    device = check_vector(score, "score", torch.float32).device
    check_vector(offsets, "offsets", torch.int32, (None,), device, minimum=1)
    check_vector(counts, "counts", torch.int32, (offsets.shape[0] - 1,), device)
    check_int(capacity, "capacity", 0)
    operands = (score.detach().contiguous(), offsets.contiguous(), counts.contiguous(), capacity)
    chosen = _backends.choose("segmented_topk", device, backend)
    if chosen == "reference":
        return SegmentedTopK(*reference.segmented_topk(*operands))
    return SegmentedTopK(*_schemas.implementation_of("segmented_topk", chosen)(*operands))
