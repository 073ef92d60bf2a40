"""complexity_plan: lower median, strict levels, looked-up counts, to the bit on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import complexity_plan
from erase_kernels.testing import record_ops
from tests.selection import (
    BACKENDS,
    check_compiled,
    check_opcheck,
    i32,
    offsets_of,
    same_bits,
)

THRESHOLDS = torch.tensor([1.69049, 1.34717, 1.17186])  # nats, Qwen2.5-VL-7B, ERASE table 13
NAN, INF = math.nan, math.inf
SPECIAL = [0.0, -0.0, NAN, INF, -INF, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 1.0, -1.0]


def table_for(images: int, levels: int) -> Tensor:
    """Counts that tell image and level apart."""
    return torch.arange(images * levels, dtype=torch.int32).view(images, levels) + 100


def plan(values: list[list[float]], thresholds: Tensor, backend: str) -> list[Tensor]:
    entropy = torch.tensor([v for image in values for v in image])
    offsets = offsets_of([len(image) for image in values])
    table = table_for(len(values), thresholds.numel() + 1)
    return list(complexity_plan(entropy, offsets, thresholds, table, backend=backend))


def assert_same_plan(values: list[list[float]], thresholds: Tensor) -> list[Tensor]:
    native, expected = (plan(values, thresholds, name) for name in ("native", "reference"))
    for ours, reference in zip(native, expected, strict=True):
        assert same_bits(ours, reference), (values, ours, reference)
    return native


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 255, 256, 2049, 4096, 16384])
def test_median_is_the_lower_one(size: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(size)
    entropy = torch.rand(size, generator=generator) * math.log(256)
    result = complexity_plan(entropy, i32(0, size), THRESHOLDS, table_for(1, 4), backend=backend)
    assert result.median.item() == entropy.sort().values[(size - 1) // 2].item()
    assert result.median.item() == torch.median(entropy).item()
    assert result.level.item() == int((entropy.median() <= THRESHOLDS).sum())
    assert result.count.item() == 100 + result.level.item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_median_on_a_threshold_is_not_above_it(backend: str) -> None:
    for level, threshold in enumerate(THRESHOLDS.tolist()):
        above = torch.nextafter(torch.tensor(threshold), torch.tensor(INF)).item()
        assert plan([[threshold]], THRESHOLDS, backend)[1].item() == level + 1
        assert plan([[above]], THRESHOLDS, backend)[1].item() == level


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_cells_and_without_thresholds(backend: str) -> None:
    median, level, count = plan([[], [2.0], []], THRESHOLDS, backend)
    assert median.tolist() == [0.0, 2.0, 0.0]
    assert level.tolist() == [3, 0, 3]
    assert count.tolist() == [103, 104, 111]
    median, level, count = plan([[1.0], []], torch.empty(0), backend)
    assert (level.tolist(), count.tolist()) == ([0, 0], [100, 101])
    empty = plan([], THRESHOLDS, backend)
    assert [tuple(x.shape) for x in empty] == [(0,), (0,), (0,)]
    assert [x.dtype for x in empty] == [torch.float32, torch.int32, torch.int32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_ranks_lowest_and_zero_has_no_sign(backend: str) -> None:
    assert math.isnan(plan([[NAN, 1.0]], THRESHOLDS, backend)[0].item())  # lower of the two
    assert plan([[NAN, 1.5, 9.0]], THRESHOLDS, backend)[0].item() == 1.5
    assert plan([[NAN]], THRESHOLDS, backend)[1].item() == 3
    median = plan([[-0.0]], THRESHOLDS, backend)[0]
    assert same_bits(median, torch.zeros(1))
    assert plan([[-1e-45, -0.0, 1e-45]], THRESHOLDS, backend)[0].item() == 0.0
    subnormals = torch.tensor([1, 2, 3], dtype=torch.int32).view(torch.float32)
    median = plan([subnormals.tolist()], THRESHOLDS, backend)[0]
    assert same_bits(median, subnormals[1:2])


def test_special_values_match_the_reference() -> None:
    generator = torch.Generator().manual_seed(5)
    for size in (1, 2, 7, 12, 31):
        chosen = torch.randint(len(SPECIAL), (size,), generator=generator).tolist()
        assert_same_plan([[SPECIAL[i] for i in chosen], SPECIAL], torch.tensor([1.0, 0.0, -1.0]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)), max_size=20), max_size=5
    ),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4, unique=True),
)
def test_any_values_match_the_reference(values: list[list[float]], limits: list[float]) -> None:
    thresholds = torch.tensor(sorted(set(limits), reverse=True))
    assert_same_plan(values, thresholds)


@pytest.mark.parametrize("last", [9, 70_000])  # the second is shared out among the threads
def test_strided_operands_and_threads(last: int, threads, poisoned) -> None:
    entropy = torch.rand(last, 4)[:, 1]
    table = table_for(5, 3).t()  # I = 3, m + 1 = 5, not contiguous
    limits = torch.tensor([0.9, 9.0, 0.6, 9.0, 0.3, 9.0, 0.1])[::2]
    operands = (entropy, i32(0, 3, 3, last), limits, table)
    expected = complexity_plan(*operands, backend="reference")
    for result in threads(lambda: complexity_plan(*operands, backend="native")):
        assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))


def test_native_is_the_default_on_the_cpu() -> None:
    operands = (torch.rand(4), i32(0, 4), THRESHOLDS, table_for(1, 4))
    with record_ops() as names:
        complexity_plan(*operands)
    assert names == ["erase_kernels::complexity_plan_native"]
    with record_ops() as names:
        complexity_plan(*operands, backend="reference")
    assert names == []


def test_opcheck_and_compile() -> None:
    operands = (torch.rand(9), i32(0, 4, 9), THRESHOLDS, table_for(2, 4))
    check_opcheck("complexity_plan_native", *operands)
    compiled = check_compiled(complexity_plan, *operands)
    for a, b in zip(compiled, complexity_plan(*operands), strict=True):
        assert same_bits(a, b)


def test_entropies_that_need_a_gradient_are_accepted() -> None:
    entropy = torch.rand(4, requires_grad=True)
    result = complexity_plan(entropy, i32(0, 4), THRESHOLDS, table_for(1, 4))
    assert not result.median.requires_grad


GOOD = (torch.rand(6), i32(0, 2, 6), THRESHOLDS, table_for(2, 4))
BAD = [
    (0, torch.rand(6, dtype=torch.float64), TypeError, "entropy"),
    (0, [1.0], TypeError, "entropy"),
    (0, torch.rand(2, 3), ValueError, "entropy"),
    (1, torch.tensor([0, 2, 6]), TypeError, "offsets"),
    (1, i32(), ValueError, "offsets"),
    (1, i32(1, 2, 6), ValueError, "offsets"),
    (1, i32(0, 7, 6), ValueError, "offsets"),
    (1, i32(0, 2, 5), ValueError, "offsets"),
    (1, i32(0, -1, 6), ValueError, "offsets"),
    (2, THRESHOLDS.double(), TypeError, "thresholds"),
    (2, torch.tensor([1.0, 1.0, 0.5]), ValueError, "thresholds"),
    (2, torch.tensor([0.5, 1.0, 2.0]), ValueError, "thresholds"),
    (2, torch.tensor([2.0, NAN, 1.0]), ValueError, "thresholds"),
    (2, torch.tensor([2.0, 1.0]), ValueError, "count_table"),
    (3, table_for(2, 4).long(), TypeError, "count_table"),
    (3, table_for(3, 4), ValueError, "count_table"),
    (3, table_for(2, 4).to("meta"), ValueError, "count_table"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("place", "value", "error", "name"), BAD)
def test_bad_input(place: int, value: object, error: type, name: str, backend: str) -> None:
    operands = list(GOOD)
    operands[place] = value
    with pytest.raises(error, match=rf"^{name}: expected .*, got "):
        complexity_plan(*operands, backend=backend)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend"):
        complexity_plan(*GOOD, backend="cuda")
