"""segmented_topk on the device: the definition's order to the last index, bad data, guard bands."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import check_status, segmented_topk
from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from tests.device.selection_problems import SCORES, SPECIAL, guarded, one_block, small_blocks
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put, run
from tests.selection import check_compiled, check_opcheck, i32, offsets_of

NAN, INF = math.nan, math.inf
SMALL = small_blocks("segmented_topk")
ONE = one_block("segmented_topk")


def topk(score: Tensor, offsets: Tensor, counts: Tensor, capacity: int, backend: str, **options):
    operands = (score, offsets, counts, capacity)
    return run(segmented_topk, *operands, backend=backend, ran="segmented_topk", **options)


def assert_reference(
    score: Tensor, sizes: list[int], counts: list[int], backend: str, spare: int = 0
) -> list[int]:
    operands = (score, offsets_of(sizes), i32(*counts), sum(counts) + spare)
    expected = segmented_topk(*operands, backend="reference")
    result = topk(*operands, backend)
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.int32
        assert torch.equal(ours, theirs), (sizes, counts, ours, theirs)
    return result.indices.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 2049, 16384, *([100_000] if ON_GPU else [])])
def test_one_segment(size: int, kind: str, backend: str, poisoned) -> None:
    score = SCORES[kind](size)
    for count in {0, 1, size // 7, size - 1, size} if size < 9999 or ON_GPU else {size // 7}:
        assert_reference(score, [size], [count], backend, spare=3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
def test_segments_of_all_sizes(kind: str, backend: str, poisoned) -> None:
    """A mean that chooses short segments, and one that is far longer than a block."""
    sizes = [0, 1, 3000, 2, 0, 33, 300] + [5] * 3
    counts = [0, 1, 700, 0, 0, 32, 150, 5, 0, 2]
    assert_reference(SCORES[kind](sum(sizes)), sizes, counts, backend, spare=40)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
def test_blocks_of_16_keys(kind: str, backend: str, poisoned) -> None:
    """Every loop turns: samples, several tiles, keys set aside, more segments than a block."""
    sizes = [15, 16, 17, 31, 32, 33, 64, 65, 200] + [1] * 9
    counts = [7, 15, 17, 1, 16, 33, 32, 0, 50] + [1, 0, 1] * 3
    with SMALL():
        assert_reference(SCORES[kind](sum(sizes)), sizes, counts, backend, spare=60)


@pytest.mark.parametrize("backend", [name for name in REPORTING if name != "triton"])
@pytest.mark.parametrize("sizes", [[6] * 7, [3000] * 2, [40_000], [1] * 9 + [40_000]])
def test_equal_segments_and_longer_ones_than_registers_hold(
    sizes: list[int], backend: str, poisoned
) -> None:
    """Equal sizes are guessed, wide and narrow blocks write tile after tile."""
    for kind in ("normal", "few values", "all equal", "any bits"):
        for counts in ([-(-size // 3) for size in sizes], sizes):
            assert_reference(SCORES[kind](sum(sizes)), sizes, counts, backend, spare=9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_ties_of_nan_are_the_first(backend: str) -> None:
    """The lowest key of all, which also stands for the places after the end."""
    score = torch.where(torch.arange(150) % 3 > 0, NAN, 1.0)
    for count in (51, 52, 149):
        assert_reference(score, [150], [count], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    assert assert_reference(torch.ones(40), [40], [4], backend) == [0, 1, 2, 3]
    with SMALL():
        kept = assert_reference(torch.ones(80), [80], [35], backend)
    assert kept == list(range(35))
    zeros = torch.tensor([-0.0, 0.0, -1.0, -0.0, 0.0])
    assert assert_reference(zeros, [5], [2], backend) == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_ranks_lowest(backend: str) -> None:
    score = torch.tensor([NAN, -INF, 1.0, NAN, INF])
    assert assert_reference(score, [5], [3], backend) == [1, 2, 4]
    negative = torch.tensor([-1, 2143289344, -4194304], dtype=torch.int32).view(torch.float32)
    assert assert_reference(negative, [3], [2], backend, spare=2) == [0, 1, -1, -1]
    for count in range(SPECIAL.numel() + 1):
        assert_reference(SPECIAL, [SPECIAL.numel()], [count], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_nan_end_with_the_segment(backend: str) -> None:
    """What stands for the places after the end is NaN, too."""
    score = torch.full((40,), NAN)
    with SMALL():
        for count in (1, 39, 40):
            assert_reference(score, [40], [count], backend, spare=9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_segments_no_room_and_strided_operands(backend: str, poisoned) -> None:
    assert topk(torch.empty(0), i32(0), i32(), 0, backend).offsets.tolist() == [0]
    assert topk(torch.empty(0), i32(0), i32(), 5, backend).indices.tolist() == [-1] * 5
    assert assert_reference(torch.rand(4), [0, 4, 0], [0, 0, 0], backend) == []
    operands = (
        torch.rand(70, 4)[:, 1],
        i32(0, -7, 3, -7, 3, -7, 70)[::2],
        i32(2, -7, 0, -7, 20)[::2],
        25,
    )
    expected = segmented_topk(*operands, backend="reference")
    result = topk(*operands, backend)
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("backend", REPORTING)
def test_more_segments_than_the_programs_sum_at_once(backend: str) -> None:
    sizes = torch.randint(0, 4, (5000 if ON_GPU else 100,))
    counts = (torch.rand(sizes.shape) * (sizes + 1)).to(torch.int32).tolist()
    with contextlib.nullcontext() if ON_GPU else SMALL():
        assert_reference(torch.rand(int(sizes.sum())), sizes.tolist(), counts, backend, spare=9)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    special = st.sampled_from(SPECIAL.tolist())
    value = st.one_of(st.floats(width=32), special, st.integers(0, 2).map(float))
    segments = draw(st.lists(st.lists(value, max_size=40), max_size=4))
    counts = [draw(st.integers(0, len(segment))) for segment in segments]
    return segments, counts, draw(st.integers(0, 3))


@pytest.mark.parametrize("backend", REPORTING)
@settings(max_examples=300 if ON_GPU else 25, deadline=None)
@given(problems(), st.booleans())
def test_any_problem(
    backend: str, problem: tuple[list[list[float]], list[int], int], small: bool
) -> None:
    segments, counts, spare = problem
    score = torch.tensor([v for segment in segments for v in segment])
    sizes = [len(segment) for segment in segments]
    with SMALL() if small else contextlib.nullcontext():
        assert_reference(score, sizes, counts, backend, spare)


BAD = [
    (i32(1, 2, 6), i32(1, 2), 4, Status.OFFSETS, "offsets"),
    (i32(0, 7, 6), i32(1, 2), 4, Status.OFFSETS, "offsets"),
    (i32(0, 2, 5), i32(1, 2), 4, Status.OFFSETS, "offsets"),
    (i32(0, -1, 6), i32(1, 2), 4, Status.OFFSETS, "offsets"),
    (i32(0, 4, 2, 6), i32(1, 2, 1), 4, Status.OFFSETS, "offsets"),
    (i32(0, 2**31 - 1, -(2**31), 6), i32(1, 2, 1), 4, Status.OFFSETS, "offsets"),
    (i32(3), i32(), 4, Status.OFFSETS, "offsets"),
    (i32(0, 6, 0, 6, 0, 6), i32(6, 1, 6, 1, 6), 4, Status.OFFSETS | Status.CAPACITY, "offsets"),
    (i32(0, 2, 6), i32(3, 2), 9, Status.COUNTS, "counts"),
    (i32(0, 2, 6), i32(-1, 2), 9, Status.COUNTS, "counts"),
    (i32(0, 2, 6), i32(1, 2**31 - 1), 9, Status.COUNTS, "counts"),
    (i32(0, 2, 6), i32(1, -(2**31)), 9, Status.COUNTS, "counts"),
    (i32(0, 2, 6), i32(1, 2), 2, Status.CAPACITY, "capacity"),
    (i32(0, 2, 6), i32(1, 2), 0, Status.CAPACITY, "capacity"),
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("offsets", "counts", "capacity", "bits", "names"), BAD)
def test_bad_data_sets_its_bit(
    offsets: Tensor, counts: Tensor, capacity: int, bits, names, backend: str
) -> None:
    with guarded() as intact:
        result = topk(torch.rand(6), offsets, counts, capacity, backend, check=False)
        intact()
    assert int(status_word(DEVICE)) == bits
    with pytest.raises(ValueError, match=names):
        check_status(DEVICE)
    check_status(DEVICE)  # cleared
    assert all(-1 <= index < 6 for index in result.indices.tolist())
    assert all(0 <= entry <= capacity for entry in result.offsets.tolist())


@pytest.mark.parametrize("backend", REPORTING)
def test_bad_segments_are_skipped_and_others_are_right(backend: str, poisoned) -> None:
    score = torch.arange(64.0)
    result = topk(score, i32(0, 10, 70, 20, 64), i32(2, 3, 1, 4), 12, backend, check=False)
    with pytest.raises(ValueError, match="offsets"):
        check_status(DEVICE)
    assert result.indices.tolist() == [8, 9, 40, 41, 42, 43] + [-1] * 6
    assert result.offsets.tolist() == [0, 2, 2, 2, 6]


@pytest.mark.parametrize("backend", REPORTING)
def test_nothing_outside_is_touched(backend: str) -> None:
    around = torch.full((400,), 9e9)  # would be kept if it were read
    score = around[100:300]
    score.copy_(torch.rand(200))
    for sizes, counts in (([200], [90]), ([37, 0, 163], [37, 0, 16]), ([1] * 50 + [150], [1] * 51)):
        with guarded() as intact, SMALL():
            assert_reference(score, sizes, counts, backend, spare=5)
            assert len(intact()) == 2 + (backend == "triton")  # results; keys set aside


@pytest.mark.parametrize("backend", REPORTING)
def test_opcheck_and_compile(backend: str) -> None:
    operands = put((torch.rand(9), i32(0, 4, 9), i32(2, 3), 7))
    check_opcheck(f"segmented_topk_{backend}", *operands)

    def graph(score: Tensor, offsets: Tensor, counts: Tensor) -> object:
        return segmented_topk(score, offsets, counts, 7, backend=backend)

    operands = operands[:3]
    for a, b in zip(check_compiled(graph, *operands), graph(*operands), strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def test_every_shape_class_is_right() -> None:
    score = torch.rand(9000)
    for shape_class in _launch.shape_classes("segmented_topk"):
        arguments = _launch.config("segmented_topk", shape_class, 90).arguments()
        one = arguments["ONE"] != 0
        with _launch.forced("segmented_topk", arguments):
            for sizes in ([4000], [1]) if one else ([4000, 0, 5000],):
                counts = [-(-size // 4) for size in sizes]
                assert_reference(score[: sum(sizes)], sizes, counts, "triton", spare=2)


@pytest.mark.parametrize("kind", SCORES)
def test_one_block_of_one_segment(kind: str, poisoned) -> None:
    for size in (1, 2, 31, 127, 128):
        score = SCORES[kind](size)
        with ONE():
            for count in {0, 1, size // 7, size - 1, size}:
                assert_reference(score, [size], [count], "triton", spare=3)
