"""text_to_vision_scores on the device: bad data, any problem, real shapes, compilation."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import check_status, text_to_vision_scores
from erase_kernels._status import Status, status_word
from erase_kernels.testing_selection import assert_scores_match, make_scores
from erase_kernels.triton_kernels import _launch, _scores_plan
from tests.device.score_calls import (
    DTYPES,
    check,
    scores,
    small_blocks,
)
from tests.device.score_calls import (
    few_programs as few_programs,
)
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put
from tests.score_problems import Problem, brute_force, make, mask_of
from tests.selection import check_compiled, check_opcheck, i32, same_bits

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_no_row_sees_may_hold_anything(backend: str) -> None:
    p = make(batch=1, queries=12, keys=20, query_offset=0)
    p.options["key_mask"] = torch.ones(1, 20, dtype=torch.bool)
    p.options["key_mask"][0, 4] = False
    p.columns = [list(range(20))]
    expected = scores(*p.operands(), backend=backend, **p.options)
    p.key[:, :, 4], p.key[:, :, 12:15], p.key[:, :, 15:] = NAN, INF, -INF
    p.query[:, :, :8] = NAN  # not among the rows
    assert same_bits(scores(*p.operands(), backend=backend, **p.options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_scores_that_are_nan_are_refused(value: float, dtype: torch.dtype, backend: str) -> None:
    for name in ("query", "key"):
        for column in (5, 9):  # 9 is not among the columns: the denominator tells
            p = make(queries=12, keys=12, dtype=dtype)
            getattr(p, name)[0, :, 9 if name == "query" else column] = value
            with pytest.raises(ValueError, match=r"^query, key: expected scores without NaN"):
                scores(*p.operands(), backend=backend)


@pytest.mark.parametrize("backend", REPORTING)
def test_nan_raises_one_bit_and_minus_infinity_of_one_key_none(backend: str) -> None:
    p = make(1, 1, 1, 12, 12, 2)
    p.query.abs_()
    p.key[0, 0, 4] = -INF  # its weight is 0
    expected = brute_force(p)
    result = scores(*p.operands(), backend=backend)
    torch.testing.assert_close(result.double(), expected, rtol=2e-6, atol=1e-6)
    p.key[0, 0, :] = -INF  # no weight is defined
    scores(*p.operands(), backend=backend, check=False)
    assert read_and_clear() == Status.SCORES


def read_and_clear() -> int:
    value = int(status_word(DEVICE).item())
    status_word(DEVICE).zero_()
    return value


GOOD = make(batch=2).operands()
ROWS, COLUMNS = GOOD[2], GOOD[4]
BAD = [
    ({2: ROWS + 5}, Status.INDICES),
    ({2: ROWS - 9}, Status.INDICES),
    ({2: torch.full_like(ROWS, 2**31 - 1)}, Status.INDICES),
    ({2: torch.full_like(ROWS, -(2**31))}, Status.INDICES),
    ({4: COLUMNS + 9}, Status.INDICES),
    ({4: COLUMNS - 4}, Status.INDICES),
    ({4: torch.full_like(COLUMNS, 2**31 - 1)}, Status.INDICES),
    ({4: torch.full_like(COLUMNS, -(2**31))}, Status.INDICES),
    ({3: i32(0, 4)}, None),
    ({3: i32(0, 9, 8)}, Status.OFFSETS),
    ({3: i32(0, 4, 7)}, Status.OFFSETS),
    ({3: i32(0, -(2**31), 8)}, Status.OFFSETS),
    ({5: i32(1, 6, 12)}, Status.OFFSETS),
    ({5: i32(0, 2**31 - 1, 12)}, Status.OFFSETS),
    ({5: i32(0, 6, 11)}, Status.OFFSETS),
    ({1: GOOD[1][:, :, :0]}, Status.INDICES),  # no key, but columns
    ({0: GOOD[0][:, :, :0]}, Status.INDICES),  # no query, but rows
    ({2: ROWS[:0]}, Status.OFFSETS),
    ({4: COLUMNS[:0]}, Status.OFFSETS),
    ({0: GOOD[0][:, :0]}, Status.SCORES),  # the mean over no heads
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("changes", "expected"), BAD)
def test_bad_data_sets_its_bit(
    changes: dict, expected: Status | None, backend: str, poisoned
) -> None:
    operands = [changes.get(place, value) for place, value in enumerate(GOOD)]
    if expected is None:
        with pytest.raises(ValueError, match="row_offsets"):
            scores(*operands, backend=backend)
        return
    for options in ({}, {"normalize_over": "columns", "causal": False}):
        result = scores(*operands, backend=backend, check=False, **options)
        assert read_and_clear() == expected
        assert expected == Status.SCORES or not result.isnan().any()


@pytest.mark.parametrize("backend", REPORTING)
def test_bad_entries_are_skipped_and_named(backend: str) -> None:
    """A row and a column that do not exist leave the others' scores as they are."""
    good = make(batch=1)
    bad = make(batch=1)
    bad.rows = [[*good.rows[0], 12, -1]]
    bad.columns = [[*good.columns[0], 99, -7]]
    expected = scores(*good.operands(), backend=backend)
    result = scores(*bad.operands(), backend=backend, check=False)
    assert same_bits(result[:-2], expected)
    assert not result[-2:].any()
    with pytest.raises(ValueError, match=r"^rows, columns: expected positions inside query and"):
        check_status(DEVICE)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    batch, queries = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    keys, depth = draw(st.integers(1, 80)), draw(st.integers(1, 12))
    options: dict[str, object] = {
        "causal": draw(st.booleans()),
        "per_head": draw(st.booleans()),
        "normalize_over": draw(st.sampled_from(["keys", "columns"])),
        "query_offset": draw(st.none() | st.integers(-10, 60)),
    }
    if draw(st.booleans()):
        options["key_mask"] = mask_of(batch, keys, draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    p = make(batch, key_heads * group, key_heads, queries, keys, depth, dtype, seed, **options)
    p.rows = [draw(st.lists(st.integers(0, queries - 1), max_size=9)) for _ in range(batch)]
    p.columns = [draw(st.lists(st.integers(0, keys - 1), max_size=20)) for _ in range(batch)]
    return p


@pytest.mark.parametrize("backend", REPORTING)
@settings(max_examples=200 if ON_GPU else 8, deadline=None)
@given(p=problems(), small=st.booleans())
def test_any_problem_keeps_the_budget(p: Problem, small: bool, backend: str) -> None:
    # Depth and group are compiled in: on a GPU every example would compile kernels of its own.
    if ON_GPU:
        p.query, p.key = p.query.repeat(1, 1, 1, 16)[..., :16], p.key.repeat(1, 1, 1, 16)[..., :16]
    with small_blocks() if small else contextlib.nullcontext():
        check(p, backend)


def test_workspace_and_shape_classes() -> None:
    """The plan: wide loads where rows are aligned, rows dealt only where programs are few."""
    plan = _scores_plan
    key = torch.zeros(1, 2, 50, 128, dtype=torch.bfloat16)
    assert plan.vector_of(key) == 8
    assert plan.vector_of(key.float()) == 4
    assert plan.vector_of(key[:, :, ::3, :64]) == 8
    assert plan.vector_of(key, key[..., 1:]) == 1
    assert plan.vector_of(key[..., ::2]) == 1
    assert plan.vector_of(key.transpose(2, 3)) == 1
    assert plan.strides_of(key[:, :, ::3], 8) == (1600, 800, 48, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROGRAMS", 256)
        assert plan.row_splits(256, 448, 64) == 1
        assert plan.row_splits(64, 280, 64) == 3  # 2, 2 and 1 blocks
        assert plan.row_splits(1, 10, 64) == 1
    classes = {plan.shape_class(torch.float16, depth, 8) for depth in (1, 64, 65, 256, 257)}
    assert classes == {"half_64", "half_128", "half_256", "half_deep"}
    assert plan.shape_class(torch.float16, 64, 1) == "half_strided"
    for kernel in (plan.ROWS_KERNEL, plan.COLUMNS_KERNEL):
        found = {*classes, "half_strided", "float32"}
        assert found == set(_launch.shape_classes(kernel))


@pytest.mark.parametrize("architecture", _launch.ARCHITECTURES)
def test_both_passes_find_the_same_logits(architecture: int) -> None:
    """They add products in the same order: pieces of the depth, and instructions, agree."""
    for name in _launch.shape_classes(_scores_plan.ROWS_KERNEL):
        rows, columns = (
            _launch.config(kernel, name, architecture).constexprs
            for kernel in (_scores_plan.ROWS_KERNEL, _scores_plan.COLUMNS_KERNEL)
        )
        assert rows["BLOCK_DEPTH"] == columns["BLOCK_DEPTH"]
        assert (rows["BLOCK_ROWS"] < 64) == (columns["BLOCK_ROWS"] < 64)  # of wgmma


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_shapes(backend: str) -> None:
    if not ON_GPU:
        sizes = [(7, 1, 64, 400, 5)]
    else:
        sizes = [(28, 4, 128, 4096, 40), (28, 4, 128, 16384, 64), (32, 32, 128, 576, 40)]
    for dtype in DTYPES if ON_GPU else (torch.float16,):
        for heads, key_heads, depth, keys, rows in sizes:
            inputs = make_scores(heads, key_heads, depth, keys, rows, dtype=dtype)
            budget = dtype if ON_GPU else torch.float32
            assert_scores_match(scores, *inputs.operands(), budget_dtype=budget, backend=backend)


@pytest.mark.parametrize("backend", REPORTING)
def test_result_is_repeatable(backend: str) -> None:
    p = make(1, 14, 2, 20, 70, 16, torch.float16)
    results = [scores(*p.operands(), backend=backend) for _ in range(3 if ON_GPU else 2)]
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("backend", REPORTING)
def test_opcheck_and_compile(backend: str) -> None:
    p = make(batch=2)
    operands = p.operands()
    for mask, per_head in ((None, False), (mask_of(2, 12), True)):
        arguments = put([*operands, mask, 0.3, True, 0, False, per_head])
        check_opcheck(f"text_to_vision_scores_{backend}", *arguments)

    def call(*tensors: Tensor) -> Tensor:
        return text_to_vision_scores(*tensors, backend=backend)

    compiled = check_compiled(call, *put(operands))
    assert same_bits(compiled.cpu(), scores(*operands, backend=backend))


@pytest.mark.parametrize("backend", REPORTING)
def test_states_that_need_a_gradient_are_accepted(backend: str) -> None:
    p = make()
    expected = scores(*p.operands(), backend=backend)
    operands = put(p.operands())
    for state in operands[:2]:
        state.requires_grad_()
    result = text_to_vision_scores(*operands, backend=backend)
    assert not result.requires_grad
    assert same_bits(result.cpu(), expected)
