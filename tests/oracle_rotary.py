"""Rotary position embedding, written out for the oracle."""

from __future__ import annotations

import torch


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sections: list[int]
) -> torch.Tensor:
    """Rotary embedding of [B, heads, S, d]. Tables [B, S, d], or [3, B, S, d] with axes unmixed."""
    if cos.ndim == 4:
        cos, sin = (
            torch.cat([part[i % 3] for i, part in enumerate(t.split(sections * 2, dim=-1))], dim=-1)
            for t in (cos, sin)
        )
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
