"""The stock model's forward for a batch of equal images, without its Python loop over windows.

The same function of the same weights, in another order of sums: attention windows that lie at the
same place of all images of a batch run as one call, and the patch embedding, whose two temporal
halves see the same still image, as one product. Training uses it; evaluation runs the stock model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.accuracy.layout import first_cell, rotary_positions

MERGE = 2
PATCH = 14
VISION_ROTARY_BASE = 10000.0
"""Fixed in the stock encoder."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of the stock image processor."""


def patches(images: Tensor) -> Tensor:
    """u8 [B, H, W, 3] -> f32 [B, P, 588]: normalised patches, one frame, in the encoder's order."""
    batch, height, width, _ = images.shape
    side = MERGE * PATCH
    mean, std = (images.new_tensor(values, dtype=torch.float32) for values in (MEAN, STD))
    x = (images.float() / 255 - mean) / std
    x = x.reshape(batch, height // side, MERGE, PATCH, width // side, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(batch, -1, 3 * PATCH * PATCH)


@dataclass(frozen=True)
class VisionPlan:
    """What the encoder needs to know of a grid of cells.

    Attributes:
        order, inverse: i64 [n], cells window by window, and back to row-major.
        lengths: patches of each window.
        cos, sin: f32 [P, head_dim], rotary tables of the patches, cells in ``order``.
    """

    order: Tensor
    inverse: Tensor
    lengths: tuple[int, ...]
    cos: Tensor
    sin: Tensor


@cache
def vision_plan(
    grid: tuple[int, int], window: int, head_dim: int, device: torch.device
) -> VisionPlan:
    """The plan for a grid; ``window``: side of the encoder's attention windows in pixels."""
    order, lengths = windows(grid, window // (MERGE * PATCH))
    cos, sin = vision_rotary(grid, head_dim, order)
    tensors = (order, torch.argsort(order), cos, sin)
    order, inverse, cos, sin = (tensor.to(device) for tensor in tensors)
    return VisionPlan(order, inverse, lengths, cos, sin)


def windows(grid: tuple[int, int], side: int) -> tuple[Tensor, tuple[int, ...]]:
    """Attention windows of ``side`` x ``side`` cells over a grid, smaller at its far edges.

    Returns:
        i64 [n], cells window by window; and the number of patches of each window.
    """
    cells = torch.arange(grid[0] * grid[1]).reshape(grid)
    parts = [
        part.flatten() for band in cells.split(side, dim=0) for part in band.split(side, dim=1)
    ]
    return torch.cat(parts), tuple(MERGE**2 * len(part) for part in parts)


def vision_rotary(grid: tuple[int, int], head_dim: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines f32 [P, head_dim] of the patches, cells in ``order``."""
    rows, columns = MERGE * grid[0], MERGE * grid[1]
    row = torch.arange(rows)[:, None].expand(rows, columns)
    column = torch.arange(columns)[None].expand(rows, columns)

    def blocks(index: Tensor) -> Tensor:
        cells = index.reshape(grid[0], MERGE, grid[1], MERGE).permute(0, 2, 1, 3)
        return cells.reshape(-1, MERGE**2)[order].flatten()

    channels = torch.arange(0, head_dim // 2, 2, dtype=torch.float) / (head_dim // 2)
    frequency = VISION_ROTARY_BASE**-channels
    angles = torch.cat([blocks(i)[:, None] * frequency for i in (row, column)], dim=1)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def plan_for(visual: Any, grid: tuple[int, int]) -> VisionPlan:
    """The plan that ``encode`` takes, for this encoder and on its device."""
    config = visual.config
    device = visual.patch_embed.proj.weight.device
    return vision_plan(grid, config.window_size, config.hidden_size // config.num_heads, device)


def encode(visual: Any, pixels: Tensor, plan: VisionPlan) -> Tensor:
    """Visual tokens f32 [B, n, D] of ``patches(images)``, cells in row-major order."""
    batch = len(pixels)
    x = pixels @ visual.patch_embed.proj.weight.sum(2).flatten(1).T
    x = x.reshape(batch, -1, MERGE**2, x.shape[-1])[:, plan.order].flatten(1, 2)
    for index, block in enumerate(visual.blocks):
        lengths = plan.lengths
        if index in visual.fullatt_block_indexes:
            lengths = (x.shape[1],)
        x = x + _attention(block.attn, block.norm1(x), plan.cos, plan.sin, lengths)
        x = x + block.mlp(block.norm2(x))
    merged: Tensor = visual.merger(x.reshape(-1, x.shape[-1]))
    return merged.reshape(batch, len(plan.order), -1)[:, plan.inverse]


def _attention(attn: Any, x: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]) -> Tensor:
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))  # [B, P, 3, H, d]
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if len(set(lengths)) == 1:  # all windows at once
        q, k, v = (t.unflatten(2, (len(lengths), -1)) for t in (q, k, v))
        out = scaled_dot_product_attention(q, k, v).flatten(2, 3)
    else:
        parts = zip(*(t.split(list(lengths), dim=2) for t in (q, k, v)), strict=True)
        out = torch.cat([scaled_dot_product_attention(*part) for part in parts], dim=2)
    result: Tensor = attn.proj(out.transpose(1, 2).flatten(2))
    return result


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def answer_logits(
    model: Any, ids: Tensor, visual: Tensor, grid: tuple[int, int], predicting: Tensor
) -> Tensor:
    """Logits f32 [B, A, vocabulary] at the positions ``predicting`` (i64 [A], as all rows have).

    Args:
        ids: i64 [B, S]; the rows have the same layout.
        visual: f32 [B, n, D], what ``encode`` returned.
    """
    inner = model.model.language_model
    first = first_cell()
    embedded = inner.embed_tokens(ids)
    embedded = torch.cat(
        [embedded[:, :first], visual, embedded[:, first + visual.shape[1] :]], dim=1
    )
    positions = rotary_positions(grid, ids.shape[1]).to(ids.device)
    positions = positions[:, None].expand(-1, len(ids), -1)
    hidden = inner(inputs_embeds=embedded, position_ids=positions, use_cache=False)
    logits: Tensor = model.lm_head(hidden.last_hidden_state[:, predicting])
    return logits
