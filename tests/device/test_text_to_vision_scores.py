"""text_to_vision_scores on the device: the error budget in every mode and layout."""

from __future__ import annotations

import math

import pytest
import torch

from erase_kernels.triton_kernels import _scores_plan
from tests.device.score_calls import (
    DTYPES,
    SOME_DTYPES,
    check,
    scores,
    small_blocks,
)
from tests.device.score_calls import (
    few_programs as few_programs,
)
from tests.device.support import BACKENDS, ON_GPU
from tests.score_problems import Problem, brute_force, make, mask_of
from tests.selection import Banded, same_bits

NAN, INF = math.nan, math.inf
MODES = {
    "plain": {},
    "masked": {"key_mask": mask_of(2, 12)},
    "all keys hidden": {"key_mask": torch.zeros(2, 12, dtype=torch.bool)},
    "not causal": {"causal": False},
    "early queries": {"query_offset": -9},
    "late queries": {"query_offset": 5},
    "far queries": {"query_offset": 2**40},
    "no query sees": {"query_offset": -(2**31)},
    "over columns": {"normalize_over": "columns"},
    "over columns, masked": {"normalize_over": "columns", "key_mask": mask_of(2, 12)},
    "per head": {"per_head": True},
    "per head over columns": {"per_head": True, "normalize_over": "columns", "causal": False},
    "scaled": {"scale": 0.5},
    "negative scale": {"scale": -2.5},
    "no scale": {"scale": 0.0},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_definition(mode: str, backend: str, poisoned) -> None:
    p = make(batch=2, **MODES[mode])
    p.rows, p.columns = [[1, 5, 11], [0, 10]], [[2, 3, 8, 11], [0, 1, 7]]
    result = scores(*p.operands(), backend=backend, **p.options)
    torch.testing.assert_close(result.double(), brute_force(p), rtol=2e-6, atol=1e-6)
    check(p, backend)


# (heads, key heads, queries, keys, depth)
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 3, 5, 3),
    (7, 1, 21, 63, 16),
    (14, 2, 10, 65, 13),
    (6, 1, 24, 257, 80),
    (6, 3, 50, 100, 32),
    (2, 2, 9, 66, 272),
    *(
        [
            (28, 4, 200, 1024, 64),
            (16, 16, 65, 1000, 72),
            (14, 2, 300, 2000, 96),
            (8, 1, 70, 700, 192),
            (32, 32, 64, 640, 128),
            (8, 4, 40, 3000, 256),
            (4, 2, 40, 500, 512),
        ]
        if ON_GPU
        else []
    ),
]
OPTIONS = ({}, {"per_head": True}, {"normalize_over": "columns", "causal": False})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_budget_of_shapes(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, poisoned
) -> None:
    heads, key_heads, queries, keys, depth = shape
    p = make(1, heads, key_heads, queries, keys, depth, dtype)
    p.rows, p.columns = [list(range(queries // 2, queries))], [list(range(keys))]
    for options in OPTIONS:
        check(p, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES if ON_GPU else DTYPES[:1])
@pytest.mark.parametrize("options", OPTIONS)
def test_many_small_blocks(options: dict, dtype: torch.dtype, backend: str, poisoned) -> None:
    """Ragged batch rows that begin and end inside blocks; the depth in several pieces."""
    p = make(4, 3, 1, 20, 75, 20, dtype)
    p.rows = [[], [3, 19, 4, 4, 0, 11, 12, 13], [2], [5, 6, 7]]
    p.columns = [[1, 2], list(range(74, 0, -3)), [], [0, 70, 3, 3] * 3]
    with small_blocks():
        check(p, backend, **options)
        check(p, backend, key_mask=mask_of(4, 75), query_offset=30, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("programs", [1, 40])
def test_how_rows_are_dealt_keeps_the_budget(programs: int, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(_scores_plan, "PROGRAMS", programs)
    p = make(1, 4, 2, 24, 40, 16)
    p.rows = [list(range(24))]
    with small_blocks():
        check(p, backend)
        check(p, backend, per_head=True, causal=False)


@pytest.mark.parametrize("backend", BACKENDS if ON_GPU else [b for b in BACKENDS if b != "triton"])
@pytest.mark.parametrize("dtype", SOME_DTYPES)
def test_more_tiles_than_stages(dtype: torch.dtype, backend: str, poisoned) -> None:
    """So many heads that a block takes many tiles of keys, and of rows: its ring turns round."""
    p = make(1, 64, 64, 165, 660, 24, dtype)
    p.rows = [list(range(165))]
    p.columns = [list(range(0, 660, 2)) + list(range(1, 660, 3))]
    check(p, backend)
    p.query, p.key = p.query[..., :136].repeat(1, 1, 1, 6)[..., :136], p.key.repeat(1, 1, 1, 6)
    p.query, p.key = p.query[:, ::4], p.key[:, ::4, :, :136]  # several pieces of the depth
    check(p, backend, causal=False, normalize_over="columns")


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_budget_with_peaked_attention(backend: str) -> None:
    """Scores spread over hundreds of nats: weights of whole blocks underflow."""
    p = make(heads=4, key_heads=2, queries=40, keys=300, depth=16, seed=9)
    p.key *= torch.linspace(0.1, 60.0, 300)[:, None]
    for options in ({}, {"causal": False}, {"causal": False, "per_head": True}):
        check(p, backend, **options)
    p.key = p.key.flip(2)
    check(p, backend, causal=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_and_columns_of_a_ragged_batch(backend: str, poisoned) -> None:
    p = make(batch=3, queries=1, keys=33)
    p.rows, p.columns = [[0], [], [0]], [[0, 32, 5], [4], []]
    check(p, backend)
    assert scores(*p.operands(), backend=backend)[3].item() == 0.0  # no row looks at it
    p = make(batch=150, heads=1, key_heads=1, queries=2, keys=3, depth=4)
    p.rows, p.columns = [[1]] * 150, [[0, 2]] * 75 + [[]] * 74 + [[1]]
    for options in ({}, {"normalize_over": "columns"}) if ON_GPU else ():
        check(p, backend, **options)
    empty = Problem(p.query[:0], p.key[:0], [], [])
    assert scores(*empty.operands(), backend=backend).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_head", [False, True])
def test_nothing_to_score_or_to_look(per_head: bool, backend: str, poisoned) -> None:
    for rows, columns in (([[]], [[1, 2]]), ([[1, 2]], [[]]), ([[]], [[]])):
        p = make(per_head=per_head)
        p.rows, p.columns = rows, columns
        result = scores(*p.operands(), backend=backend, per_head=per_head)
        assert result.shape == ((4, len(columns[0])) if per_head else (len(columns[0]),))
        assert not result.any()
    p = make(keys=0)
    p.columns = [[]]
    assert scores(*p.operands(), backend=backend).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_in_any_order_and_repeated(backend: str) -> None:
    p = make(keys=40, queries=40)
    straight = scores(*p.operands(), backend=backend)
    order = torch.randperm(len(p.columns[0]), generator=torch.Generator().manual_seed(2)).tolist()
    p.columns = [[p.columns[0][i] for i in order] + [p.columns[0][0]]]
    shuffled = scores(*p.operands(), backend=backend)
    assert same_bits(shuffled[:-1], straight[order])
    assert same_bits(shuffled[-1:], straight[:1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", SOME_DTYPES)
def test_strided_views_are_read_where_they_are(dtype: torch.dtype, backend: str) -> None:
    p = make(2, 4, 2, 20, 30, 16, dtype)
    expected = scores(*p.operands(), backend=backend)
    cache, query = Banded(p.key), Banded(p.query)  # a narrowed view of a preallocated cache
    variants = [
        (query.view, cache.view),
        tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (p.query, p.key)),
        (p.query.mT.contiguous().mT, p.key.mT.contiguous().mT),  # depth is not the unit stride
        (p.query, p.key.repeat_interleave(2, 3)[..., ::2]),
        (p.query[:, :1].expand(-1, 4, -1, -1), p.key[:, :1].expand(-1, 2, -1, -1)),
    ]
    one_head = Problem(variants[-1][0].clone(), variants[-1][1].clone(), p.rows, p.columns)
    for p.query, p.key in variants:
        if p.query.stride(1) == 0:
            expected = scores(*one_head.operands(), backend=backend)
        result = scores(*p.operands(), backend=backend)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)
    assert cache.intact()
    assert query.intact()


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_around_the_operands_is_not_used(backend: str) -> None:
    """NaN lies before and after every row of queries and keys, and beyond their depth."""
    p = make(1, 4, 2, 12, 30, 8)
    expected = scores(*p.operands(), backend=backend)
    views = []
    for tensor in (p.query, p.key):
        base = torch.full([size + 8 for size in tensor.shape], NAN)
        base[4:-4, 4:-4, 4:-4, 4:-4] = tensor
        views.append(base[4:-4, 4:-4, 4:-4, 4:-4])  # 16 bytes, so that rows stay aligned
    p.query, p.key = views
    assert same_bits(scores(*p.operands(), backend=backend), expected)
