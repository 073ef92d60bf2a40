"""Attention mass that text rows put on vision columns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from erase_kernels import _backends, _schemas, reference
from erase_kernels._checks import check_int, check_tensor, check_vector, refuse

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_OFFSET = -(2**31)  # every row then sees nothing


def text_to_vision_scores(
    query: Tensor,  # [B, H, S, d]
    key: Tensor,  # [B, Hk, L, d]
    rows: Tensor,  # i32 [R]
    row_offsets: Tensor,  # i32 [B + 1]
    columns: Tensor,  # i32 [C]
    column_offsets: Tensor,  # i32 [B + 1]
    *,
    key_mask: Tensor | None = None,  # bool [B, L]
    scale: float | None = None,
    causal: bool = True,
    query_offset: int | None = None,
    normalize_over: Literal["keys", "columns"] = "keys",
    per_head: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Scores each vision column by the attention it gets from the text rows of its batch row.

    ``score[c] = sum_r mean_h p[h, r, c]`` with ``p[h, r, :] = softmax(scale * q[h, r] . k[:])``
    over ALL keys row ``r`` may see (or over the columns only). Key ``j`` is visible to row ``r``
    if ``key_mask`` allows it and, when ``causal``, ``j <= r + query_offset``. A column a row may
    not see, and a row that sees nothing, contribute 0. Query heads are grouped: head ``h`` reads
    key head ``h // (H / Hk)``. Sums are float32 in an order fixed by the shapes; neither
    ``[H, rows, keys]`` nor repeated keys are ever stored. The result carries no gradient.

    Args:
        query: float32, float16 or bfloat16 ``[B, H, S, d]``, any strides.
        key: same dtype, ``[B, Hk, L, d]``, any strides (a view of a longer cache is not copied);
            ``H`` a multiple of ``Hk``.
        rows: int32 ``[R]``, query positions of each batch row, batch row after batch row.
        row_offsets: int32 ``[B + 1]`` into ``rows``.
        columns: int32 ``[C]``, key positions to score, in any order.
        column_offsets: int32 ``[B + 1]`` into ``columns``.
        key_mask: bool ``[B, L]``, True where a key may be attended; None for everywhere.
        scale: factor on the dot products, ``d**-0.5`` if None.
        causal: whether later keys are hidden.
        query_offset: key position of query 0; ``L - S`` if None (queries are the last ones).
        normalize_over: "keys": the softmax runs over all visible keys; "columns": over the
            visible listed columns only.
        per_head: return every head by itself instead of the mean.
        backend: a name that `backend_info` lists, or None for the device's default.

    Returns:
        float32 ``[C]``, or ``[H, C]`` with ``per_head``, aligned with ``columns``.

    Raises:
        TypeError: not tensors, or wrong dtypes.
        ValueError: wrong shapes, several devices, indices out of range, bad offsets, a score
            that is NaN, unknown option or backend.
        RuntimeError: the backend is not available here.

    On CUDA devices bad indices and offsets and NaN scores are not raised here, for that would make
    the host wait: bad rows and columns count as absent, and `check_status` raises.

    Source:
        ERASE, section 3.4 (text-guided importance of visual tokens).
    """
    _check_states(query, key)
    batch, _, length, depth = key.shape
    device = query.device
    check_vector(rows, "rows", torch.int32, (None,), device)
    check_vector(row_offsets, "row_offsets", torch.int32, (batch + 1,), device)
    check_vector(columns, "columns", torch.int32, (None,), device)
    check_vector(column_offsets, "column_offsets", torch.int32, (batch + 1,), device)
    if key_mask is not None:
        check_vector(key_mask, "key_mask", torch.bool, (batch, length), device)
        key_mask = key_mask.contiguous()
    if normalize_over not in ("keys", "columns"):
        refuse("normalize_over", '"keys" or "columns"', repr(normalize_over))
    if query_offset is None:
        query_offset = length - query.shape[2]
    else:
        check_int(query_offset, "query_offset", LEAST_OFFSET)
    arguments = (
        query.detach(),
        key.detach(),
        rows.contiguous(),
        row_offsets.contiguous(),
        columns.contiguous(),
        column_offsets.contiguous(),
        key_mask,
        depth**-0.5 if scale is None else float(scale),
        bool(causal),
        query_offset,
        normalize_over == "columns",
        bool(per_head),
    )
    chosen = _backends.choose("text_to_vision_scores", device, backend)
    if chosen == "reference":
        return reference.text_to_vision_scores(*arguments)
    run = _schemas.implementation_of("text_to_vision_scores", chosen)
    return run(*arguments)  # type: ignore[no-any-return]


def _check_states(query: Tensor, key: Tensor) -> None:
    for name, value in (("query", query), ("key", key)):
        check_tensor(value, name)
        if value.dtype not in DTYPES:
            refuse(name, "dtype float32, float16 or bfloat16", value.dtype, TypeError)
        if value.dim() != 4:
            refuse(name, "shape [batch, heads, length, depth]", tuple(value.shape))
    if key.dtype != query.dtype:
        refuse("key", f"the dtype of query {query.dtype}", key.dtype, TypeError)
    if key.device != query.device:
        refuse("key", f"device {query.device}", key.device)
    batch, heads, _, depth = query.shape
    if key.shape[0] != batch or key.shape[3] != depth or depth == 0:
        expected = f"batch {batch} and depth {depth} > 0, as query has"
        refuse("key", expected, tuple(key.shape))
    if key.shape[1] == 0 or heads % key.shape[1] != 0:
        refuse("key", f"a number of heads that divides query's {heads}", key.shape[1])
