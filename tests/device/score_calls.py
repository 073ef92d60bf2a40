"""Calls of text_to_vision_scores that the tests of this folder share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from erase_kernels import text_to_vision_scores
from erase_kernels.testing_selection import assert_scores_match
from erase_kernels.triton_kernels import _launch, _scores_plan
from tests.device.support import ON_GPU, run
from tests.score_problems import Problem

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SOME_DTYPES = DTYPES if ON_GPU else DTYPES[::2]  # interpreted, both halves take the same path
SMALL = {"BLOCK_ROWS": 16, "BLOCK_DEPTH": 16, "num_warps": 4}


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks so small that every loop of the Triton kernels runs more than once."""
    kernels = {_scores_plan.ROWS_KERNEL: "BLOCK_KEYS", _scores_plan.COLUMNS_KERNEL: "BLOCK_COLUMNS"}
    with contextlib.ExitStack() as stack:
        for kernel, block in kernels.items():
            stack.enter_context(_launch.forced(kernel, {**SMALL, block: 32}))
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """The interpreter runs programs one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            patch.setattr(_scores_plan, "PROGRAMS", 4)
        yield


def scores(*operands: Tensor, backend: str, **options: object) -> Tensor:
    ran = "text_to_vision_scores"
    return run(text_to_vision_scores, *operands, backend=backend, ran=ran, **options)


def check(p: Problem, backend: str, **options: object) -> None:
    """Asserts the budget: float32 arithmetic, but what tensor cores can do on a GPU."""
    options = {**p.options, **options}
    dtype = p.query.dtype if ON_GPU else torch.float32
    assert_scores_match(scores, *p.operands(), budget_dtype=dtype, backend=backend, **options)
