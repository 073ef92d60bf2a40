"""text_to_vision_scores: within the error budget of float64 in every mode, layout and dtype."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erase_kernels import text_to_vision_scores
from erase_kernels.testing import record_ops
from erase_kernels.testing_selection import assert_scores_match
from tests.score_problems import Problem, brute_force, make, mask_of
from tests.selection import BACKENDS, Banded, check_compiled, check_opcheck, i32, same_bits

NAN = math.nan


MODES = {
    "plain": {},
    "masked": {"key_mask": mask_of(2, 12)},
    "all keys hidden": {"key_mask": torch.zeros(2, 12, dtype=torch.bool)},
    "not causal": {"causal": False},
    "early queries": {"query_offset": -9},
    "late queries": {"query_offset": 5},
    "over columns": {"normalize_over": "columns"},
    "over columns, masked": {"normalize_over": "columns", "key_mask": mask_of(2, 12)},
    "per head": {"per_head": True},
    "per head over columns": {"per_head": True, "normalize_over": "columns", "causal": False},
    "scaled": {"scale": 0.5},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_definition(mode: str, backend: str) -> None:
    p = make(batch=2, **MODES[mode])
    p.rows, p.columns = [[1, 5, 11], [0, 10]], [[2, 3, 8, 11], [0, 1, 7]]
    torch.testing.assert_close(p.run(backend).double(), brute_force(p), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_error_budget_in_every_mode(mode: str) -> None:
    assert_scores_match(
        text_to_vision_scores, *make(batch=2, **MODES[mode]).operands(), **MODES[mode]
    )


# (heads, key heads, queries, keys, depth): strips of 48 rows, tiles of 8 keys and blocks of 64 keys
# are met exactly, missed by one, and far too large for what is there.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 3, 5, 3),
    (7, 1, 21, 63, 16),
    (28, 4, 30, 64, 13),
    (12, 2, 24, 65, 80),
    (16, 1, 9, 129, 7),
    (48, 1, 3, 128, 4),
    (49, 1, 3, 71, 4),
    (6, 3, 150, 200, 32),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_budget_of_shapes(shape: tuple[int, ...], dtype: torch.dtype, poisoned) -> None:
    heads, key_heads, queries, keys, depth = shape
    p = make(1, heads, key_heads, queries, keys, depth, dtype)
    p.rows, p.columns = [list(range(queries // 2, queries))], [list(range(keys))]
    for options in ({}, {"per_head": True}, {"normalize_over": "columns", "causal": False}):
        assert_scores_match(text_to_vision_scores, *p.operands(), **options)


def test_error_budget_with_peaked_attention() -> None:
    """Scores spread over hundreds of nats: running maxima rise and weights underflow."""
    p = make(heads=4, key_heads=2, queries=40, keys=300, depth=16, seed=9)
    p.key *= torch.linspace(0.1, 60.0, 300)[:, None]
    for options in ({}, {"causal": False}, {"causal": False, "per_head": True}):
        assert_scores_match(text_to_vision_scores, *p.operands(), **options)
    p.key = p.key.flip(2)
    assert_scores_match(text_to_vision_scores, *p.operands(), causal=False)


def test_mass_adds_up_to_the_rows() -> None:
    p = make(heads=4, key_heads=2, queries=70, keys=90, depth=8, causal=False)
    p.columns = [list(range(90))]
    assert p.run().sum().item() == pytest.approx(len(p.rows[0]), rel=1e-5)


def test_last_row_only_and_ragged_batches() -> None:
    p = make(batch=3, queries=1, keys=33)
    p.rows, p.columns = [[0], [], [0]], [[0, 32, 5], [4], []]
    assert_scores_match(text_to_vision_scores, *p.operands())
    assert p.run()[3].item() == 0.0  # no row looks at it
    assert make(batch=1).run().shape == (6,)
    nothing = Problem(p.query[:0], p.key[:0], [], [])
    assert nothing.run().shape == (0,)
    assert nothing.run("reference").shape == (0,)


def test_query_key_and_value_may_be_one_tensor() -> None:
    states = make(heads=3, key_heads=3, queries=20, keys=20).query
    p = Problem(states, states, [list(range(20))], [list(range(20))], {"causal": False})
    assert_scores_match(text_to_vision_scores, *p.operands(), causal=False)


def test_columns_in_any_order_and_repeated() -> None:
    p = make(keys=40, queries=40)
    straight = p.run()
    order = torch.randperm(len(p.columns[0]), generator=torch.Generator().manual_seed(2)).tolist()
    p.columns = [[p.columns[0][i] for i in order] + [p.columns[0][0]]]
    shuffled = p.run()
    assert same_bits(shuffled[:-1], straight[order])
    assert same_bits(shuffled[-1:], straight[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strided_views_are_read_where_they_are(dtype: torch.dtype) -> None:
    p = make(2, 6, 2, 30, 50, 16, dtype)
    expected = p.run()
    cache, query = Banded(p.key), Banded(p.query)  # a narrowed view of a preallocated cache
    variants = [
        (query.view, cache.view),
        (p.query.transpose(1, 2).contiguous().transpose(1, 2),) * 1
        + (p.key.transpose(1, 2).contiguous().transpose(1, 2),),
        (p.query.mT.contiguous().mT, p.key.mT.contiguous().mT),  # depth is not the unit stride
        (p.query, p.key.repeat_interleave(2, 3)[..., ::2]),
    ]
    for p.query, p.key in variants:
        assert same_bits(p.run(), expected)
    assert cache.intact()
    assert query.intact()


def test_keys_no_row_sees_may_hold_anything() -> None:
    p = make(batch=1, queries=12, keys=20, query_offset=0)
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, 4] = False
    p.options["key_mask"] = mask
    expected = [p.run(backend) for backend in BACKENDS]
    p.key[:, :, 4], p.key[:, :, 12:] = NAN, NAN
    p.query[:, :, :8] = NAN  # not among the rows
    for backend, before in zip(BACKENDS, expected, strict=True):
        assert same_bits(p.run(backend), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_scores_that_are_nan_are_refused(value: float, dtype: torch.dtype, backend: str) -> None:
    for name in ("query", "key"):
        p = make(queries=12, keys=12, dtype=dtype)
        getattr(p, name)[0, :, 9] = value
        with pytest.raises(ValueError, match=r"^query, key: expected scores without NaN, got"):
            p.run(backend)


def test_result_does_not_depend_on_threads(threads) -> None:
    p = make(2, 14, 2, 64, 150, 16)
    for options in ({}, {"per_head": True}):
        p.options = options
        results = threads(p.run)
        assert all(same_bits(result, results[0]) for result in results)


CLONE_SCRIPT = """
import sys, torch
from erase_kernels import _native
from tests.score_problems import make
assert _native.STATUS.cpu_clone == sys.argv[1], _native.STATUS
torch.save([make(2, 14, 2, 64, 150, 16, dtype).run()
            for dtype in (torch.float32, torch.float16, torch.bfloat16)], sys.argv[2])
"""


@pytest.mark.parametrize("clone", ["baseline", "avx2", "avx512"])
def test_every_clone_keeps_the_budget(clone: str, tmp_path, supported_clones) -> None:
    """Each in a process of its own, with fresh memory poisoned by the allocator."""
    if clone not in supported_clones:
        pytest.skip(f"this processor has no {clone}")
    path = tmp_path / "scores.pt"
    env = {**os.environ, "ERASE_KERNELS_CPU_CLONE": clone, "MALLOC_PERTURB_": "129"}
    command = [sys.executable, "-c", CLONE_SCRIPT, clone, str(path)]
    subprocess.run(command, check=True, env=env)
    for result, dtype in zip(
        torch.load(path), (torch.float32, torch.float16, torch.bfloat16), strict=True
    ):
        p = make(2, 14, 2, 64, 150, 16, dtype)
        assert_scores_match(lambda *_, r=result, **__: r, *p.operands())


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
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    seed = draw(st.integers(0, 2**31))
    p = make(batch, key_heads * group, key_heads, queries, keys, depth, dtype, seed, **options)
    p.rows = [draw(st.lists(st.integers(0, queries - 1), max_size=9)) for _ in range(batch)]
    p.columns = [draw(st.lists(st.integers(0, keys - 1), max_size=20)) for _ in range(batch)]
    return p


@settings(max_examples=100, deadline=None)
@given(problems())
def test_any_problem_keeps_the_budget(p: Problem) -> None:
    assert_scores_match(text_to_vision_scores, *p.operands(), **p.options)


def test_native_is_the_default_on_the_cpu() -> None:
    p = make()
    with record_ops() as names:
        text_to_vision_scores(*p.operands())
    assert names == ["erase_kernels::text_to_vision_scores_native"]
    with record_ops() as names:
        p.run("reference")
    assert names == []


def test_opcheck_and_compile() -> None:
    p = make(batch=2)
    operands = p.operands()
    for mask, per_head in ((None, False), (mask_of(2, 12), True)):
        check_opcheck(
            "text_to_vision_scores_native", *operands, mask, 0.3, True, 0, False, per_head
        )
    compiled = check_compiled(text_to_vision_scores, *operands)
    assert same_bits(compiled, p.run())


def test_states_that_need_a_gradient_are_accepted() -> None:
    p = make()
    expected = p.run()
    p.query.requires_grad_()
    p.key.requires_grad_()
    for backend in BACKENDS:
        assert not p.run(backend).requires_grad
    assert same_bits(p.run(), expected)


GOOD = make(batch=2).operands()
ROWS, COLUMNS = GOOD[2], GOOD[4]
BAD = [
    ({0: GOOD[0].double()}, {}, TypeError, "query"),
    ({0: GOOD[0][0]}, {}, ValueError, "query"),
    ({0: "query"}, {}, TypeError, "query"),
    ({1: GOOD[1].half()}, {}, TypeError, "key"),
    ({1: GOOD[1][:1]}, {}, ValueError, "key"),
    ({1: GOOD[1][..., :4]}, {}, ValueError, "key"),
    ({1: torch.cat([GOOD[1], GOOD[1][:, :1]], 1)}, {}, ValueError, "key"),
    ({1: GOOD[1][:, :0]}, {}, ValueError, "key"),
    ({1: GOOD[1].to("meta")}, {}, ValueError, "key"),
    ({2: ROWS.long()}, {}, TypeError, "rows"),
    ({2: ROWS + 5}, {}, ValueError, "rows"),
    ({2: ROWS - 9}, {}, ValueError, "rows"),
    ({3: i32(0, 4)}, {}, ValueError, "row_offsets"),
    ({3: i32(0, 9, 8)}, {}, ValueError, "row_offsets"),
    ({3: i32(0, 4, 7)}, {}, ValueError, "row_offsets"),
    ({4: COLUMNS + 9}, {}, ValueError, "columns"),
    ({4: COLUMNS - 4}, {}, ValueError, "columns"),
    ({5: i32(1, 6, 12)}, {}, ValueError, "column_offsets"),
    ({}, {"key_mask": torch.ones(2, 11, dtype=torch.bool)}, ValueError, "key_mask"),
    ({}, {"key_mask": torch.ones(2, 12)}, TypeError, "key_mask"),
    ({}, {"normalize_over": "rows"}, ValueError, "normalize_over"),
    ({}, {"query_offset": 1.0}, TypeError, "query_offset"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("changes", "options", "error", "name"), BAD)
def test_bad_input(changes: dict, options: dict, error: type, name: str, backend: str) -> None:
    operands = [changes.get(place, value) for place, value in enumerate(GOOD)]
    with pytest.raises(error, match=rf"^{name}: expected .*, got "):
        text_to_vision_scores(*operands, **options, backend=backend)
