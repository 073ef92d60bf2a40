"""Median entropy, complexity level and kept count of each image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_vector


class ComplexityPlan(NamedTuple):
    """What `complexity_plan` decides for each of I images."""

    median: Tensor  # f32 [I], nats
    level: Tensor  # i32 [I], 0 = most complex
    count: Tensor  # type: ignore[assignment]  # i32 [I], tokens to keep; hides tuple.count


def complexity_plan(
    entropy: Tensor,  # f32 [n]
    offsets: Tensor,  # i32 [I + 1]
    thresholds: Tensor,  # f32 [m]
    count_table: Tensor,  # i32 [I, m + 1]
    *,
    backend: str | None = None,
) -> ComplexityPlan:
    """Grades images by the median entropy of their cells and looks up how many tokens each keeps.

    ``median_i`` is the LOWER median of ``entropy[offsets[i]:offsets[i + 1]]``: element
    ``(n_i - 1) // 2`` of the ascending order, where NaN comes first and -0 equals +0.
    ``level_i`` is the first ``j`` with ``median_i > thresholds[j]`` (strict, in float32), else
    ``m``; ``count_i = count_table[i, level_i]``. An image without cells has median 0, and so level
    ``m`` and the last count of its row unless a threshold is negative; a NaN median gets level
    ``m``. Bit-identical on every
    backend.

    Args:
        entropy: float32 ``[n]``, nats, cells of all images one image after the other.
        offsets: int32 ``[I + 1]``, first cell of each image; starts at 0, never falls, ends at n.
        thresholds: float32 ``[m]``, nats, strictly descending; may be empty.
        count_table: int32 ``[I, m + 1]``, tokens kept by each image at each level, computed by
            the caller as ``int(n_i * max(ratio, keep_ratio))`` in double precision.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        `ComplexityPlan` of median (float32 ``[I]``), level and count (int32 ``[I]``).

    Raises:
        TypeError: not tensors, or wrong dtypes.
        ValueError: wrong shapes, several devices, bad offsets, thresholds not strictly
            descending, unknown backend.
        RuntimeError: the backend is not available here.

    On CUDA devices bad offsets and thresholds are not raised here, for that would make the host
    wait: images they spoil get unspecified results, and `check_status` raises.

    Source:
        ERASE, sections 3.3 and 3.3.1 (image complexity and its levels).
    """
    device = check_vector(entropy, "entropy", torch.float32).device
    check_vector(offsets, "offsets", torch.int32, (None,), device, minimum=1)
    check_vector(thresholds, "thresholds", torch.float32, (None,), device)
    shape = (offsets.shape[0] - 1, thresholds.shape[0] + 1)
    check_vector(count_table, "count_table", torch.int32, shape, device)
    operands = [x.contiguous() for x in (entropy.detach(), offsets, thresholds, count_table)]
    chosen = _backends.choose("complexity_plan", device, backend)
    if chosen == "reference":
        return ComplexityPlan(*reference.complexity_plan(*operands))
    return ComplexityPlan(*_schemas.implementation_of("complexity_plan", chosen)(*operands))
