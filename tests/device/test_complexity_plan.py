"""complexity_plan on the device: exact lower medians, levels, counts, bad data."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import check_status, complexity_plan
from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from tests.device.selection_problems import SCORES, SPECIAL, guarded, one_block, small_blocks
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put, run
from tests.selection import check_compiled, check_opcheck, i32, offsets_of, same_bits
from tests.test_complexity_plan import THRESHOLDS, table_for

NAN, INF = math.nan, math.inf
SMALL = small_blocks("complexity_plan")
ONE = one_block("complexity_plan")


def plan(entropy: Tensor, offsets: Tensor, thresholds: Tensor, backend: str, **options) -> list:
    table = table_for(offsets.numel() - 1, thresholds.numel() + 1)
    operands = (entropy, offsets, thresholds, table)
    return list(run(complexity_plan, *operands, backend=backend, ran="complexity_plan", **options))


def assert_reference(
    entropy: Tensor, sizes: list[int], thresholds: Tensor, backend: str
) -> list[Tensor]:
    offsets = offsets_of(sizes)
    table = table_for(len(sizes), thresholds.numel() + 1)
    expected = complexity_plan(entropy, offsets, thresholds, table, backend="reference")
    result = plan(entropy, offsets, thresholds, backend)
    for name, ours, theirs in zip(expected._fields, result, expected, strict=True):
        assert same_bits(ours, theirs), (name, ours, theirs)
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 2049, 16384, *([100_000] if ON_GPU else [])])
def test_median_of_one_image(size: int, kind: str, backend: str, poisoned) -> None:
    assert_reference(SCORES[kind](size), [size], THRESHOLDS, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
def test_median_of_images_of_all_sizes(kind: str, backend: str, poisoned) -> None:
    """A mean that chooses short segments, and one that is far longer than a block."""
    sizes = [0, 1, 3000, 2, 0, 33, 300] + [5] * 3
    assert_reference(SCORES[kind](sum(sizes)), sizes, torch.tensor([1.0, 0.0, -1.0]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCORES)
def test_median_with_blocks_of_16_keys(kind: str, backend: str) -> None:
    """Every loop turns: samples, several tiles, keys set aside."""
    sizes = [15, 16, 17, 31, 32, 33, 64, 65, 200]
    with SMALL():
        assert_reference(SCORES[kind](sum(sizes)), sizes, torch.tensor([0.5]), backend)


@pytest.mark.parametrize("backend", [name for name in REPORTING if name != "triton"])
@pytest.mark.parametrize("sizes", [[6] * 7, [3000] * 2, [40_000], [1] * 9 + [40_000]])
def test_median_of_equal_images_and_of_longer_ones_than_registers_hold(
    sizes: list[int], backend: str, poisoned
) -> None:
    """Equal sizes are guessed, wide and narrow blocks read tile after tile."""
    for kind in ("normal", "few values", "any bits"):
        assert_reference(SCORES[kind](sum(sizes)), sizes, torch.tensor([1.0, 0.0]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_median_on_a_threshold_is_not_above_it(backend: str) -> None:
    for level, threshold in enumerate(THRESHOLDS):
        above = torch.nextafter(threshold, torch.tensor(INF))
        levels = plan(torch.stack([threshold, above]), i32(0, 1, 2), THRESHOLDS, backend)[1]
        assert levels.tolist() == [level + 1, level]


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_medians(backend: str) -> None:
    subnormal = torch.tensor([1, -(2**31) + 1, 2], dtype=torch.int32).view(torch.float32)
    negative_nan = torch.tensor([-1, -4194304], dtype=torch.int32).view(torch.float32)
    for values in (SPECIAL, subnormal, negative_nan, torch.tensor([NAN, 1.5, 9.0])):
        for chosen in values:
            assert_reference(chosen[None], [1], torch.tensor([1.0, 0.0, -1.0]), backend)
        assert_reference(values, [values.numel()], subnormal[[2, 0]], backend)
    zero = plan(torch.tensor([-0.0]), i32(0, 1), THRESHOLDS, backend)[0]
    assert same_bits(zero, torch.zeros(1))
    lost = plan(negative_nan, i32(0, 2), THRESHOLDS, backend)
    assert same_bits(lost[0], torch.tensor([NAN]))
    assert lost[1].tolist() == [3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 70])
def test_any_number_of_thresholds(count: int, backend: str) -> None:
    limits = torch.linspace(1, -1, count) if count > 1 else torch.tensor([NAN] * count)
    entropy = torch.tensor([-2.0, 0.01, 2.0])
    levels = assert_reference(entropy, [1, 1, 1, 0], limits, backend)[1]
    assert levels[0] == count
    assert count < 2 or levels[2] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_late_threshold_counts(backend: str) -> None:
    levels = assert_reference(torch.tensor([-34.5]), [1], -torch.arange(70.0), backend)[1]
    assert levels.tolist() == [35]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images_and_strided_operands(backend: str) -> None:
    empty = plan(torch.empty(0), i32(0), THRESHOLDS, backend)
    assert [x.numel() for x in empty] == [0, 0, 0]
    operands = (
        torch.rand(70, 4)[:, 1],
        i32(0, -7, 3, -7, 3, -7, 70)[::2],
        torch.tensor([0.9, 9.0, 0.6, 9.0, 0.3])[::2],
        table_for(4, 3).t(),
    )
    expected = complexity_plan(*operands, backend="reference")
    result = run(complexity_plan, *operands, backend=backend, ran="complexity_plan")
    assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("backend", REPORTING)
@settings(max_examples=300 if ON_GPU else 25, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.floats(width=32), st.sampled_from(SPECIAL.tolist())), max_size=40),
        max_size=4,
    ),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4, unique=True),
    st.booleans(),
)
def test_any_values(
    backend: str, values: list[list[float]], limits: list[float], small: bool
) -> None:
    thresholds = torch.tensor(sorted(set(limits), reverse=True))
    entropy = torch.tensor([v for image in values for v in image])
    with SMALL() if small else contextlib.nullcontext():
        assert_reference(entropy, [len(image) for image in values], thresholds, backend)


BAD = [
    (i32(1, 2, 6), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, 7, 6), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, 2, 5), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, -1, 6), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, 4, 2, 6), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, 2**31 - 1, -(2**31), 6), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(3), THRESHOLDS, Status.OFFSETS, "offsets"),
    (i32(0, 6), torch.tensor([1.0, 1.0, 0.5]), Status.THRESHOLDS, "thresholds"),
    (i32(0, 6), torch.tensor([0.5, 1.0]), Status.THRESHOLDS, "thresholds"),
    (i32(0, 6), torch.tensor([2.0, NAN]), Status.THRESHOLDS, "thresholds"),
    (i32(0, 6), torch.tensor([NAN, 2.0]), Status.THRESHOLDS, "thresholds"),
    (i32(0, 6), torch.tensor([0.0, -0.0]), Status.THRESHOLDS, "thresholds"),
    (i32(0, 6), -torch.arange(40.0).clamp(max=38), Status.THRESHOLDS, "thresholds"),
    (i32(0, 5), torch.tensor([1.0, 2.0]), Status.THRESHOLDS | Status.OFFSETS, "offsets.*thresh"),
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("offsets", "thresholds", "bits", "names"), BAD)
def test_bad_data_sets_its_bit(
    offsets: Tensor, thresholds: Tensor, bits, names, backend: str, poisoned
) -> None:
    result = plan(torch.rand(6), offsets, thresholds, backend, check=False)
    levels = thresholds.numel()
    assert int(status_word(DEVICE)) == bits
    with pytest.raises(ValueError, match=names):
        check_status(DEVICE)
    check_status(DEVICE)  # cleared
    for image, (level, count) in enumerate(
        zip(result[1].tolist(), result[2].tolist(), strict=True)
    ):
        assert 0 <= level <= levels
        assert count == 100 + image * (levels + 1) + level


@pytest.mark.parametrize("backend", REPORTING)
def test_bad_images_are_skipped_and_others_are_right(backend: str) -> None:
    entropy, offsets = torch.full((400,), 9e9)[:64], i32(0, 10, 170, 20, 64)
    entropy.copy_(torch.rand(64))
    result = plan(entropy, offsets, THRESHOLDS, backend, check=False)
    with pytest.raises(ValueError, match="offsets"):
        check_status(DEVICE)
    assert result[0][0] == entropy[:10].median()
    assert result[0][3] == entropy[20:].median()
    assert result[1].tolist()[1:3] == [3, 3]  # nothing was read
    assert result[2].tolist()[1:3] == [107, 111]


@pytest.mark.parametrize("backend", REPORTING)
def test_nothing_outside_is_touched(backend: str) -> None:
    around = torch.full((400,), 9e9)
    entropy = around[100:300]
    entropy.copy_(torch.rand(200))
    for sizes in ([200], [37, 0, 163], [1] * 200):
        with guarded() as intact, SMALL():
            assert_reference(entropy, sizes, THRESHOLDS, backend)
            made = 4 + (backend == "triton")  # results, one of the reference; keys set aside
            assert len(intact()) == made


@pytest.mark.parametrize("backend", REPORTING)
def test_opcheck_and_compile(backend: str) -> None:
    operands = put((torch.rand(9), i32(0, 4, 9), THRESHOLDS, table_for(2, 4)))
    check_opcheck(f"complexity_plan_{backend}", *operands)

    def graph(*inputs: Tensor) -> object:
        return complexity_plan(*inputs, backend=backend)

    for a, b in zip(check_compiled(graph, *operands), graph(*operands), strict=True):
        assert same_bits(a.cpu(), b.cpu())


def test_every_shape_class_is_right() -> None:
    entropy = torch.rand(9000)
    for shape_class in _launch.shape_classes("complexity_plan"):
        arguments = _launch.config("complexity_plan", shape_class, 90).arguments()
        one = arguments["ONE"] != 0
        with _launch.forced("complexity_plan", arguments):
            for sizes in ([4000], [1]) if one else ([4000, 0, 5000],):
                assert_reference(entropy[: sum(sizes)], sizes, THRESHOLDS, "triton")


@pytest.mark.parametrize("kind", SCORES)
def test_one_block_of_one_image(kind: str, poisoned) -> None:
    for size in (1, 2, 31, 127, 128):
        with ONE():
            assert_reference(SCORES[kind](size), [size], torch.tensor([0.5]), "triton")
