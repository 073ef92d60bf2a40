"""Operands for the tests of text_to_vision_scores, and its definition in float64."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from erase_kernels import text_to_vision_scores
from tests.selection import offsets_of


@dataclasses.dataclass
class Problem:
    """Operands of one call; ``rows`` and ``columns`` per batch row."""

    query: Tensor
    key: Tensor
    rows: list[list[int]]
    columns: list[list[int]]
    options: dict[str, object] = dataclasses.field(default_factory=dict)

    def operands(self) -> tuple[Tensor, ...]:
        flat = [
            torch.tensor([i for y in x for i in y], dtype=torch.int32)
            for x in (self.rows, self.columns)
        ]
        ends = [offsets_of([len(y) for y in x]) for x in (self.rows, self.columns)]
        return self.query, self.key, flat[0], ends[0], flat[1], ends[1]

    def run(self, backend: str = "native") -> Tensor:
        return text_to_vision_scores(*self.operands(), **self.options, backend=backend)


def make(
    batch: int = 1,
    heads: int = 4,
    key_heads: int = 2,
    queries: int = 12,
    keys: int = 12,
    depth: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: object,
) -> Problem:
    """The last rows look at the middle columns, as text looks at an image before it."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, depth, generator=generator).to(dtype)
    key = torch.randn(batch, key_heads, keys, depth, generator=generator).to(dtype)
    rows = [list(range(queries * 2 // 3, queries)) for _ in range(batch)]
    columns = [list(range(keys // 4, keys * 3 // 4)) for _ in range(batch)]
    return Problem(query, key, rows, columns, options)


def brute_force(p: Problem) -> Tensor:
    """The definition in float64, one row and head at a time."""
    mask, scale = p.options.get("key_mask"), p.options.get("scale", p.query.shape[3] ** -0.5)
    offset = p.options.get("query_offset", p.key.shape[2] - p.query.shape[2])
    heads, group = p.query.shape[1], p.query.shape[1] // p.key.shape[1]
    parts = []
    for b, (rows, columns) in enumerate(zip(p.rows, p.columns, strict=True)):
        score = torch.zeros(heads, len(columns), dtype=torch.float64)
        for h in range(heads):
            keys = p.key[b, h // group].double()
            for r in rows:
                weight = torch.exp(keys @ p.query[b, h, r].double() * scale)
                for j in range(p.key.shape[2]):
                    hidden = p.options.get("causal", True) and j > r + offset
                    if hidden or (mask is not None and not mask[b, j]):
                        weight[j] = 0.0
                listed = p.options.get("normalize_over") == "columns"
                total = weight[columns].sum() if listed else weight.sum()
                if total > 0:
                    score[h] += weight[columns] / total
        parts.append(score if p.options.get("per_head") else score.mean(0))
    return torch.cat(parts, dim=-1)


def mask_of(batch: int, keys: int, seed: int = 3) -> Tensor:
    return torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)) > 0.3
