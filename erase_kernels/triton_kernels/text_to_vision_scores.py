"""text_to_vision_scores on tensor cores: two passes over the keys, four launches.

1. rows: a program keeps one block of keys of a key head and walks over all query rows that read it
   (the rows times the head's group, packed); it writes each row's maximum and sum over the block.
2. combine: those of all blocks, in block order, become one maximum and one weight per row.
3. columns: a program keeps one block of listed keys, computes the logits again, and adds
   ``exp2(logit - maximum) * weight`` over the packed rows in registers.
4. sum: adds the key heads and divides by the number of heads.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels._odd import odd
from erase_kernels.triton_kernels._scores_columns import (
    text_to_vision_scores_columns_kernel,
    text_to_vision_scores_sum_kernel,
)
from erase_kernels.triton_kernels._scores_plan import (
    COLUMNS_KERNEL,
    LEAST_SCALE,
    ROWS_KERNEL,
    row_splits,
    settings,
    shape_class,
    strides_of,
    vector_of,
)
from erase_kernels.triton_kernels._scores_rows import (
    text_to_vision_scores_combine_kernel,
    text_to_vision_scores_rows_kernel,
)

COMBINE = {"BLOCK": 32, "BLOCK_PARTS": 64, "num_warps": 4}
SUM = {"BLOCK": 128, "BLOCK_PARTS": 4, "num_warps": 4}


@dataclasses.dataclass(frozen=True)
class Operands:
    """What the launches of one call share; keyword arguments of the kernels by their names."""

    tensors: dict[str, Tensor]
    sizes: tuple[int, ...]  # B, S, L, R, C
    heads: int
    key_heads: int
    problem: dict[str, Any]  # strides, offset, scale, masks
    constants: dict[str, dict[str, Any]]  # by kernel


def _operands(
    tensors: dict[str, Tensor],
    masked: bool,
    scale: float,
    causal: bool,
    query_offset: int,
    per_head: bool,
) -> Operands:
    """Without a mask any tensor stands in for it: it is not read."""
    query, key = tensors["p_query"], tensors["p_key"]
    heads, queries, depth = query.shape[1:]
    key_heads, length = key.shape[1:3]
    vector = vector_of(query, key)
    shared: dict[str, Any] = {
        "vector": vector,
        "negative": scale < 0,
        "group": heads // key_heads,
        "heads": 1 if per_head else heads // key_heads,
        "architecture": _launch.architecture(query.device),
    }
    return Operands(
        tensors=tensors,
        sizes=(
            query.shape[0],
            queries,
            length,
            tensors["p_rows"].shape[0],
            tensors["p_columns"].shape[0],
        ),
        heads=heads,
        key_heads=key_heads,
        problem={
            "query_strides": odd(strides_of(query, vector)),
            "key_strides": odd(strides_of(key, vector)),
            "query_offset": min(max(query_offset, -queries), length) if causal else length,
            "scale": max(abs(scale) * math.log2(math.e), LEAST_SCALE),
            "masked": int(masked),
        },
        constants={
            kernel: settings(kernel, query.dtype, depth, **shared)
            for kernel in (ROWS_KERNEL, COLUMNS_KERNEL)
        },
    )


def _combine(
    x: Operands, part: Tensor, statistics: Tensor, offset: Tensor, splits: int, status: Tensor
) -> None:
    """Launches the second kernel, which also checks every index."""
    batch, _, _, rows, columns = x.sizes
    count = x.heads * rows
    entries = max(count, columns, batch + 1)
    names = ("p_rows", "p_row_offsets", "p_columns", "p_column_offsets")
    text_to_vision_scores_combine_kernel[(_launch.cdiv(entries, COMBINE["BLOCK"]),)](
        p_block_max=part,
        p_block_sum=part[splits * count :],
        p_max=statistics,
        p_weight=statistics[count:],
        p_query_offset=offset,
        **{name: x.tensors[name] for name in names},
        p_status=status,
        sizes=odd(x.sizes),
        query_strides=x.problem["query_strides"],
        heads=x.heads,
        blocks=splits,
        group=max(x.heads // x.key_heads, 1),
        **COMBINE,
    )


def _run(x: Operands, listed: bool, per_head: bool, out: Tensor, status: Tensor) -> None:
    batch, _, length, rows, columns = x.sizes
    group, count = x.heads // x.key_heads, x.heads * rows
    mean_rows = _launch.cdiv(rows, batch)

    first = x.constants[ROWS_KERNEL]
    splits = _launch.cdiv(columns if listed else length, first["BLOCK_KEYS"])
    deals = row_splits(splits * batch * x.key_heads, mean_rows * group, first["BLOCK_ROWS"])

    second = x.constants[COLUMNS_KERNEL]
    blocks = _launch.cdiv(columns, second["BLOCK_COLUMNS"])
    planes, packed = (x.heads, 1) if per_head else (x.key_heads, group)
    column_deals = row_splits(blocks * planes, mean_rows * packed, second["BLOCK_ROWS"])
    parts = column_deals * (1 if per_head else planes)

    offset = x.tensors["p_query"].new_empty(group * rows, dtype=torch.int64)
    # The parts of the columns take the place of the parts of the rows, no longer needed by then.
    sizes = (2 * count, max(2 * splits * count, column_deals * planes * columns))
    statistics, part = out.new_empty(sum(sizes)).split(sizes)
    text_to_vision_scores_rows_kernel[(splits * batch, x.key_heads * deals)](
        **x.tensors,
        p_max=part,
        p_sum=part[splits * count :],
        sizes=odd(x.sizes),
        **x.problem,
        listed=int(listed),
        row_splits=deals,
        **first,
    )
    _combine(x, part, statistics, offset, splits, status)
    heads = 1.0 if per_head else float(x.heads)
    text_to_vision_scores_columns_kernel[(blocks, planes * column_deals)](
        **x.tensors,
        p_query_offset=offset,
        p_max=statistics,
        p_weight=statistics[count:],
        p_score=out if parts == 1 else part,
        p_status=status,
        sizes=odd(x.sizes),
        **x.problem,
        row_splits=column_deals,
        divisor=heads if parts == 1 else 1.0,
        **second,
    )
    if parts > 1:
        text_to_vision_scores_sum_kernel[(_launch.cdiv(out.numel(), SUM["BLOCK"]),)](
            p_part=part, p_score=out, count=out.numel(), parts=parts, divisor=heads, **SUM
        )


def text_to_vision_scores(
    query: Tensor,  # [B, H, S, d]
    key: Tensor,  # [B, Hk, L, d]
    rows: Tensor,  # i32 [R]
    row_offsets: Tensor,  # i32 [B + 1]
    columns: Tensor,  # i32 [C]
    column_offsets: Tensor,  # i32 [B + 1]
    key_mask: Tensor | None,  # bool [B, L]
    scale: float,
    causal: bool,
    query_offset: int,
    normalize_over_columns: bool,
    per_head: bool,
) -> Tensor:  # f32 [C] or [H, C]
    """See `erase_kernels.text_to_vision_scores`."""
    status = status_word(query.device)
    tensors = {
        "p_query": query,
        "p_key": key,
        "p_rows": rows,
        "p_row_offsets": row_offsets,
        "p_columns": columns,
        "p_column_offsets": column_offsets,
        "p_mask": (status if key_mask is None else key_mask).view(torch.uint8),
    }
    x = _operands(tensors, key_mask is not None, scale, causal, query_offset, per_head)
    shape = (x.heads, columns.shape[0]) if per_head else (columns.shape[0],)
    out = query.new_empty(shape, dtype=torch.float32)
    with _launch.on(query.device):
        if x.heads == 0 or 0 in x.sizes:
            nothing = x.heads == 0 and out.numel() > 0  # the mean over no heads
            out.fill_(math.nan if nothing else 0.0)
            status.bitwise_or_(int(Status.SCORES) if nothing else 0)
            _combine(dataclasses.replace(x, heads=0), out, out, out, 0, status)
        else:
            _run(x, normalize_over_columns, per_head, out, status)
    return out


# --- ahead of time -------------------------------------------------------------------------------

TYPES = {
    "p_query_offset": "*i64",
    "p_mask": "*u8",
    "sizes": ("i32",) * 5,
    "query_strides": ("i32",) * 4,
    "key_strides": ("i32",) * 4,
    "scale": "fp32",
    "divisor": "fp32",
}
STATES = ("p_query", "p_key")
INTEGERS = ("p_rows", "p_row_offsets", "p_columns", "p_column_offsets", "p_status")
CODES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SAMPLES: tuple[tuple[torch.dtype, int, dict[str, Any]], ...] = (  # dtype, depth, what is unusual
    (torch.bfloat16, 64, {}),
    (torch.bfloat16, 128, {}),
    (torch.float16, 128, {}),
    (torch.bfloat16, 128, {"heads": 1}),
    (torch.bfloat16, 128, {"vector": 1, "negative": True}),
    (torch.bfloat16, 80, {}),
    (torch.bfloat16, 256, {}),
    (torch.bfloat16, 320, {}),
    (torch.bfloat16, 512, {}),
    (torch.float32, 128, {}),
)


def _compilation(
    kernel: Any, name: str, constants: dict[str, Any], state: str = ""
) -> _launch.Compilation:
    def type_of(argument: str) -> Any:
        if argument in constants:
            return "constexpr"
        if argument in STATES:
            return f"*{state}"
        if argument in INTEGERS:
            return "*i32"
        return TYPES.get(argument, "*fp32" if argument.startswith("p_") else "i32")

    return _launch.Compilation(
        name=name,
        kernel=kernel,
        signature={argument: type_of(argument) for argument in kernel.arg_names},
        constexprs={k: v for k, v in constants.items() if k not in _launch.OPTIONS},
        options={k: v for k, v in constants.items() if k in _launch.OPTIONS},
        unaligned=tuple(x for x in kernel.arg_names if x[:2] == "p_" and x not in STATES),
    )


def compilations(architecture: int) -> list[_launch.Compilation]:
    """How the kernels are compiled: every shape class, and unusual calls of one of them."""
    found = [
        _compilation(
            text_to_vision_scores_combine_kernel, "text_to_vision_scores_combine", COMBINE
        ),
        _compilation(text_to_vision_scores_sum_kernel, "text_to_vision_scores_sum", SUM),
    ]
    kernels = {
        ROWS_KERNEL: text_to_vision_scores_rows_kernel,
        COLUMNS_KERNEL: text_to_vision_scores_columns_kernel,
    }
    for dtype, depth, unusual in SAMPLES:
        usual = {"vector": 16 // dtype.itemsize, "negative": False, "group": 7, "heads": 7}
        for name, kernel in kernels.items():
            constants = settings(name, dtype, depth, architecture=architecture, **usual | unusual)
            fitting = shape_class(dtype, depth, constants["VECTOR"])
            label = " ".join([name, fitting, CODES[dtype], f"d{depth}", *unusual])
            found.append(_compilation(kernel, label, constants, CODES[dtype]))
    return found
