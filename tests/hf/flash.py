"""A flash attention that runs anywhere: torch in place of the package's two kernels.

Everything around the kernels is transformers' own: masks, padding and unpadding, the detection of
packed sequences, and the choice between the dense kernel and the one for ragged batches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as plumbing

FLASH = "flash_attention_2"


@dataclass(frozen=True)
class FlashCall:
    """One call of a kernel; ``queries`` and ``keys`` of each sequence."""

    kernel: str  # "dense" or "varlen"
    queries: tuple[int, ...]
    keys: tuple[int, ...]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """One sequence, [S, heads, d]; causality is aligned at the last query and the last key."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * scale
    if causal:
        rows, columns = logits.shape[-2:]
        seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        logits = logits.masked_fill(~seen.tril(columns - rows), -math.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1), value)


@contextlib.contextmanager
def flash_kernels() -> Iterator[list[FlashCall]]:
    """The stand-ins take the place of the package; yields their calls."""
    calls: list[FlashCall] = []

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        deterministic: bool = False,
    ) -> Tensor:
        batch = q.shape[0]
        calls.append(FlashCall("dense", (q.shape[1],) * batch, (k.shape[1],) * batch))
        rows = zip(q, k, v, strict=True)
        return torch.stack([attend(*row, softmax_scale, causal) for row in rows])

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        deterministic: bool = False,
    ) -> Tensor:
        queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        calls.append(FlashCall("varlen", tuple(queries), tuple(keys)))
        parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
        return torch.cat([attend(*part, softmax_scale, causal) for part in parts])

    pads = (plumbing._pad_input, plumbing._unpad_input)
    stand_ins = (flash_attn_func, flash_attn_varlen_func, None, *pads)
    own = plumbing._lazy_imports
    loaded = plumbing._loaded_implementation
    plumbing._lazy_imports = lambda *args, **kwargs: stand_ins
    plumbing._loaded_implementation = None
    try:
        yield calls
    finally:
        plumbing._lazy_imports, plumbing._loaded_implementation = own, loaded


@contextlib.contextmanager
def with_flash(model: Any, name: str = FLASH) -> Iterator[Any]:
    """The model with its decoder's attention set to flash attention, and back again."""
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield model
    finally:
        config._attn_implementation = before
