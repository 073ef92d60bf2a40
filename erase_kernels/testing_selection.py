"""Real shapes, inputs and comparisons for the selection, scoring and compaction operators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from erase_kernels import reference

# The budget is twice the error that plain torch makes on the same operands, plus this many
# units in the last place of the largest score: both results are rounded to float32, and a small
# problem may round luckily in one of them.
SCORE_ULPS = 8


@dataclasses.dataclass(frozen=True)
class ScoreInputs:
    """Positional operands of `erase_kernels.text_to_vision_scores`."""

    query: Tensor
    key: Tensor
    rows: Tensor
    row_offsets: Tensor
    columns: Tensor
    column_offsets: Tensor

    def operands(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def make_scores(
    heads: int,
    key_heads: int,
    depth: int,
    keys: int,
    rows: int,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ScoreInputs:
    """One prompt: a system prompt, the image, then ``rows`` text tokens that score it.

    Keys lie in a preallocated cache of twice their number, as a view; queries are those of the
    last ``rows`` tokens only.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = torch.randn(1, key_heads, 2 * keys, depth, generator=generator).to(dtype)
    query = torch.randn(1, heads, rows, depth, generator=generator).to(dtype)
    system = min(15, keys // 4)  # tokens before the image in the Qwen2-VL chat template
    columns = torch.arange(system, keys - rows, dtype=torch.int32)
    return ScoreInputs(
        query,
        cache[:, :, :keys],
        torch.arange(rows, dtype=torch.int32),
        torch.tensor([0, rows], dtype=torch.int32),
        columns,
        torch.tensor([0, columns.numel()], dtype=torch.int32),
    )


def make_entropies(cells: int, *, seed: int = 0) -> Tensor:
    """Entropies as a document has them: a third exactly 0, many ties, the rest spread to ln 256."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(cells, generator=generator) * math.log(256)
    kind = torch.rand(cells, generator=generator)
    values = torch.where(kind < 1 / 3, 0.0, values)
    return torch.where(kind > 2 / 3, (values * 8).round() / 8, values)


def make_keep(batch: int, length: int, ratio: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random kept slots, ascending: int32 ``[batch, int(length * ratio)]`` and their counts."""
    generator = torch.Generator().manual_seed(seed)
    width = int(length * ratio)
    picks = [
        torch.randperm(length, generator=generator)[:width].sort().values for _ in range(batch)
    ]
    return torch.stack(picks).to(torch.int32), torch.full((batch,), width, dtype=torch.int32)


def make_caches(
    layers: int, key_heads: int, keys: int, depth: int, *, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """Keys and values of ``layers`` layers of one prompt, ``[1, key_heads, keys, depth]`` each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, key_heads, keys, depth)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2 * layers)]


def reference_scores(dtype: torch.dtype, *operands: Tensor, **options: Any) -> Tensor:
    """The reference in ``dtype`` for a call of the public function, its defaults filled in."""
    query, key = operands[:2]
    offset, scale = options.get("query_offset"), options.get("scale")
    arguments: tuple[Any, ...] = (
        *operands,
        options.get("key_mask"),
        query.shape[3] ** -0.5 if scale is None else scale,
        options.get("causal", True),
        key.shape[2] - query.shape[2] if offset is None else offset,
        options.get("normalize_over", "keys") == "columns",
        options.get("per_head", False),
        dtype,
    )
    return reference.text_to_vision_scores(*arguments)


def assert_scores_match(
    function: Callable[..., Tensor],
    *operands: Tensor,
    budget_dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Asserts that text-to-vision scores keep the error budget against float64.

    Operands of half precision are compared with plain torch in float32 on the same values: the
    operator promises float32 sums for them too. Tensor cores align the products of half precision
    before they add them and cut what falls off, more than float32 addition would lose; there, pass
    the operands' type, and plain torch in that type sets the budget.

    Args:
        function: takes what `erase_kernels.text_to_vision_scores` takes.
        operands: its positional arguments.
        budget_dtype: in which plain torch computes, for its error to be doubled.
        options: its keyword arguments.

    Raises:
        AssertionError: an error above the budget; it says both.
    """
    exact = reference_scores(torch.float64, *operands, **options)
    plain = reference_scores(budget_dtype, *operands, **options)
    result = function(*operands, **options)
    if result.dtype != torch.float32 or result.shape != exact.shape:
        got, expected = (result.dtype, tuple(result.shape)), tuple(exact.shape)
        raise AssertionError(f"got {got}, expected float32 {expected}")
    if result.numel() == 0:
        return
    error = float((result.double() - exact).abs().max())
    unit = torch.finfo(torch.float32).eps * float(exact.abs().max())
    budget = 2 * float((plain.double() - exact).abs().max()) + SCORE_ULPS * unit
    if not error <= budget:
        raise AssertionError(f"scores are off by {error:.3e}, the budget is {budget:.3e}")
