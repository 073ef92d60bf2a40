"""Host side of text_to_vision_scores: how operands are read and work is divided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from erase_kernels.triton_kernels import _launch

ROWS_KERNEL, COLUMNS_KERNEL = "text_to_vision_scores_rows", "text_to_vision_scores_columns"
LEAST_DEPTH = 16  # of a matrix product
# Programs that fill a large device twice over; a constant, so that results do not depend on the
# device. Problems with fewer blocks of keys deal out their rows too.
PROGRAMS = 256
LEAST_SCALE = 2.0**-126  # stands for 0: exp2 of any logit times it is 1


def shape_class(dtype: torch.dtype, depth: int, vector: int) -> str:
    """Name under which configurations are kept."""
    if dtype == torch.float32:
        return "float32"
    if vector == 1:
        return "half_strided"  # element by element
    fitting = [size for size in (64, 128, 256) if depth <= size]
    return f"half_{fitting[0]}" if fitting else "half_deep"


def vector_of(*tensors: Tensor) -> int:
    """Elements of 16 bytes if every position of each tensor is contiguous and aligned, else 1."""
    size = 16 // tensors[0].element_size()
    for tensor in tensors:
        strides = [s for s, n in zip(tensor.stride()[:3], tensor.shape[:3], strict=True) if n > 1]
        if tensor.stride(3) != 1 or any(s % size for s in strides) or tensor.data_ptr() % 16:
            return 1
    return size


def strides_of(tensor: Tensor, vector: int) -> tuple[int, ...]:
    """Strides in units of ``vector`` elements, that of the depth in elements."""
    return (*(stride // vector for stride in tensor.stride()[:3]), tensor.stride(3))


def settings(
    kernel: str,
    dtype: torch.dtype,
    depth: int,
    *,
    vector: int,
    negative: bool,
    group: int,
    heads: int,
    architecture: int,
) -> dict[str, Any]:
    """Constants and compiler options of either pass; ``heads`` of a program of the second."""
    chosen = _launch.config(kernel, shape_class(dtype, depth, vector), architecture).arguments()
    padded = max(_launch.next_power_of_2(depth), LEAST_DEPTH)
    return {
        **chosen,
        "GROUP": group,
        **({"HEADS": heads} if kernel == COLUMNS_KERNEL else {}),
        "DEPTH": depth,
        "BLOCK_DEPTH": min(chosen["BLOCK_DEPTH"], padded),
        "VECTOR": vector,
        "NEGATIVE": negative,
    }


def row_splits(programs: int, rows: int, block: int) -> int:
    """Among how many programs the blocks of ``rows`` packed rows are dealt."""
    blocks = max(-(-rows // block), 1)
    each = -(-blocks // max(PROGRAMS // programs, 1))
    return -(-blocks // each)
