"""segmented_topk: highest scores, lowest index on ties, ascending, to the bit on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import SegmentedTopK, segmented_topk
from erase_kernels.testing import record_ops
from tests.selection import (
    BACKENDS,
    check_compiled,
    check_opcheck,
    i32,
    offsets_of,
    same_bits,
)

NAN, INF = math.nan, math.inf
SPECIAL = [0.0, -0.0, NAN, INF, -INF, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 1.0, -1.0]


def brute_force(segments: list[list[float]], counts: list[int]) -> tuple[list[int], list[int]]:
    """The definition, with Python's sort: (score descending, index ascending), NaN last."""
    indices, ends = [], [0]
    for values, count in zip(segments, counts, strict=True):
        order = sorted(
            range(len(values)),
            key=lambda i: (math.isnan(values[i]), 0.0 if math.isnan(values[i]) else -values[i], i),
        )
        indices += sorted(order[:count])
        ends.append(len(indices))
    return indices, ends


def run(segments: list[list[float]], counts: list[int], spare: int, backend: str) -> SegmentedTopK:
    score = torch.tensor([v for segment in segments for v in segment])
    offsets = offsets_of([len(segment) for segment in segments])
    return segmented_topk(score, offsets, i32(*counts), sum(counts) + spare, backend=backend)


def assert_definition(segments: list[list[float]], counts: list[int], spare: int) -> None:
    rounded = [torch.tensor(x, dtype=torch.float32).tolist() for x in segments]
    indices, ends = brute_force(rounded, counts)
    for backend in BACKENDS:
        result = run(segments, counts, spare, backend)
        assert result.indices.tolist() == indices + [-1] * spare, (backend, segments, counts)
        assert result.offsets.tolist() == ends
        assert result.indices.dtype == result.offsets.dtype == torch.int32


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 4097, 16384])
def test_every_count_class(size: int, poisoned) -> None:
    generator = torch.Generator().manual_seed(size)
    score = torch.randn(size, generator=generator).tolist()
    for count in {0, 1, size // 7, size // 2, size - 1, size}:
        assert_definition([score], [count], spare=3)


def test_ties_go_to_the_lowest_index() -> None:
    assert_definition([[1.0] * 9], [4], 0)
    assert_definition([[2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0]], [5], 1)
    assert run([[1.0] * 9], [4], 0, "native").indices.tolist() == [0, 1, 2, 3]
    assert run([[-0.0, 0.0, -0.0, 0.0]], [2], 0, "native").indices.tolist() == [0, 1]
    few_values = torch.randint(3, (4096,), generator=torch.Generator().manual_seed(1))
    assert_definition([few_values.float().tolist()], [614], 0)


def test_nan_ranks_lowest_and_infinities_are_legal() -> None:
    assert_definition([[NAN, -INF, 1.0, NAN, INF]], [3], 0)
    assert run([[NAN, -INF, 1.0, NAN, INF]], [3], 0, "native").indices.tolist() == [1, 2, 4]
    assert_definition([[NAN] * 5], [3], 2)
    negative_nan = torch.tensor([-1, 2143289344, -4194304], dtype=torch.int32).view(torch.float32)
    assert negative_nan.isnan().all()
    for backend in BACKENDS:
        result = segmented_topk(negative_nan, i32(0, 3), i32(2), 2, backend=backend)
        assert result.indices.tolist() == [0, 1]


def test_subnormals_are_told_apart() -> None:
    assert_definition([[1e-45, 3e-45, -1e-45, 0.0, 4e-45]], [2], 0)


def test_several_segments_with_empty_ones() -> None:
    segments = [[], [3.0, 1.0, 2.0], [], [5.0], [4.0, 4.0]]
    assert_definition(segments, [0, 2, 0, 1, 1], spare=4)
    assert_definition([], [], spare=2)
    assert_definition([[], []], [0, 0], spare=0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    value = st.one_of(st.floats(width=32), st.sampled_from(SPECIAL), st.integers(0, 2).map(float))
    segments = draw(st.lists(st.lists(value, max_size=24), max_size=5))
    counts = [draw(st.integers(0, len(segment))) for segment in segments]
    return segments, counts, draw(st.integers(0, 3))


@settings(max_examples=80, deadline=None)
@given(problems())
def test_any_problem_follows_the_definition(
    problem: tuple[list[list[float]], list[int], int],
) -> None:
    assert_definition(*problem)


@pytest.mark.parametrize("last", [300, 70_000])  # the second is shared out among the threads
def test_strided_operands_and_threads(last: int, threads, poisoned) -> None:
    score = torch.randint(9, (last, 2)).float()[:, 1]
    offsets = i32(0, -7, 100, -7, 100, -7, last)[::2]
    operands = (score, offsets, i32(40, 0, 99), 160)
    expected = segmented_topk(*operands, backend="reference")
    for result in threads(lambda: segmented_topk(*operands, backend="native")):
        assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))


def test_native_is_the_default_on_the_cpu() -> None:
    operands = (torch.rand(4), i32(0, 4), i32(2), 2)
    with record_ops() as names:
        segmented_topk(*operands)
    assert names == ["erase_kernels::segmented_topk_native"]
    with record_ops() as names:
        segmented_topk(*operands, backend="reference")
    assert names == []


def test_opcheck_and_compile() -> None:
    operands = (torch.rand(9), i32(0, 4, 9), i32(2, 3), 7)
    check_opcheck("segmented_topk_native", *operands)
    compiled = check_compiled(segmented_topk, *operands)
    for a, b in zip(compiled, segmented_topk(*operands), strict=True):
        assert same_bits(a, b)


def test_scores_that_need_a_gradient_are_accepted() -> None:
    score = torch.rand(4, requires_grad=True)
    assert segmented_topk(score, i32(0, 4), i32(2), 2).indices.numel() == 2


GOOD: tuple[Tensor, Tensor, Tensor, int] = (torch.rand(6), i32(0, 2, 6), i32(1, 2), 4)
BAD = [
    (0, torch.rand(6, dtype=torch.float16), TypeError, "score"),
    (0, None, TypeError, "score"),
    (0, torch.rand(2, 3), ValueError, "score"),
    (1, torch.tensor([0, 2, 6]), TypeError, "offsets"),
    (1, i32(), ValueError, "offsets"),
    (1, i32(0, 7, 6), ValueError, "offsets"),
    (1, i32(0, 2, 7), ValueError, "offsets"),
    (2, i32(1, 2, 3), ValueError, "counts"),
    (2, i32(3, 2), ValueError, "counts"),
    (2, i32(-1, 2), ValueError, "counts"),
    (2, torch.tensor([1, 2]), TypeError, "counts"),
    (3, 2, ValueError, "capacity"),
    (3, -1, ValueError, "capacity"),
    (3, 4.0, TypeError, "capacity"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("place", "value", "error", "name"), BAD)
def test_bad_input(place: int, value: object, error: type, name: str, backend: str) -> None:
    operands: list[object] = list(GOOD)
    operands[place] = value
    with pytest.raises(error, match=rf"^{name}: expected .*, got "):
        segmented_topk(*operands, backend=backend)
