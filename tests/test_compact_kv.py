"""compact_kv_: kept slots move down in place, nothing else changes, contiguous and paged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import compact_kv_
from erase_kernels.testing import record_ops
from tests.selection import (
    BACKENDS,
    SENTINEL,
    Banded,
    check_compiled,
    check_opcheck,
    i32,
    same_bits,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool]


def keep_of(lists: list[list[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    """keep and counts; entries after the counts are rubbish that must be ignored."""
    width = max([len(x) for x in lists], default=0) if width is None else width
    rows = [x + [-(10**9)] * (width - len(x)) for x in lists]
    keep = torch.tensor(rows, dtype=torch.int32).reshape(len(lists), width)
    return keep, i32(*[len(x) for x in lists])


def cache(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


def assert_moved(after: Tensor, before: Tensor, lists: list[list[int]]) -> None:
    for b, slots in enumerate(lists):
        assert same_bits(after[b, :, : len(slots)], before[b, :, slots])


LISTS = [
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11]],  # all in place; the last one only
    [[], [3]],
    [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 2, 4, 6, 8, 10]],  # one long overlapping run
    [[0, 1, 2, 5, 6, 9, 11], [3, 4, 5, 6, 10]],
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lists", LISTS)
def test_kept_slots_move_down(lists: list[list[int]], dtype: torch.dtype, backend: str) -> None:
    caches = [cache(2, heads, 12, depth, dtype=dtype) for heads, depth in ((3, 5), (1, 8), (2, 1))]
    moved = [tensor.clone() for tensor in caches]
    storages = [tensor.data_ptr() for tensor in moved]
    assert compact_kv_(moved, *keep_of(lists), backend=backend) is None
    assert [tensor.data_ptr() for tensor in moved] == storages
    for after, before in zip(moved, caches, strict=True):
        assert after.shape == before.shape
        assert_moved(after, before, lists)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_may_differ_in_shape_dtype_and_layout(backend: str) -> None:
    lists = [[2, 3, 7], [0, 5, 6, 8]]
    interleaved = cache(2, 3, 12, 2, 5)  # keys and values side by side
    slot_first = cache(2, 12, 3, 5).transpose(1, 2)
    contents = [
        cache(2, 3, 12, 5),
        cache(2, 1, 9, 64, dtype=torch.bfloat16),
        cache(2, 2, 200, 7, dtype=torch.float16)[:, :, :9],
        interleaved[..., 0, :],
        interleaved[..., 1, :],
        slot_first,
    ]
    expected = [tensor.clone() for tensor in contents]
    compact_kv_(contents, *keep_of(lists, width=6), backend=backend)
    for after, before in zip(contents, expected, strict=True):
        assert_moved(after, before, lists)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_around_the_views_is_touched(backend: str) -> None:
    lists = [[0, 3, 4, 10], [9], [5, 6, 7, 8, 9, 10]]
    before = cache(3, 2, 11, 6)
    banded = Banded(before)
    half = torch.full((3, 2, 40, 6), SENTINEL, dtype=torch.float32)  # a preallocated cache
    half[:, :, :11] = before
    compact_kv_([banded.view, half[:, :, :11]], *keep_of(lists), backend=backend)
    assert banded.intact()
    assert (half[:, :, 11:] == SENTINEL).all()
    assert_moved(banded.view, before, lists)
    assert_moved(half, before, lists)


def test_slots_behind_the_last_kept_one_stay() -> None:
    """The tail is undefined, but a kernel that writes there has lost count."""
    before = cache(1, 2, 12, 4)
    after = before.clone()
    compact_kv_([after], *keep_of([[4, 5, 9]]), backend="native")
    assert same_bits(after[:, :, 3:], before[:, :, 3:])


@pytest.mark.parametrize("length", [1, 63, 3000])  # the last is shared out among the threads
def test_lengths_and_threads(length: int, threads) -> None:
    generator = torch.Generator().manual_seed(length)
    kept = (torch.rand(3, length, generator=generator) < 0.4).tolist()
    lists = [[i for i, keep in enumerate(row) if keep] for row in kept]
    before = [cache(3, 2, length, 16, seed=s) for s in range(5)]

    def run() -> list[Tensor]:
        after = [tensor.clone() for tensor in before]
        compact_kv_(after, *keep_of(lists), backend="native")
        return after

    for after in threads(run):
        for ours, old in zip(after, before, strict=True):
            assert_moved(ours, old, lists)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 20)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_lists(sets: list[set[int]], heads: int, depth: int, slot_first: bool) -> None:
    lists = [sorted(x) for x in sets]
    before = cache(len(lists), heads, 21, depth)
    if slot_first:
        before = before.transpose(1, 2).contiguous().transpose(1, 2)
    banded = Banded(before)
    compact_kv_([banded.view], *keep_of(lists, width=21), backend="native")
    assert_moved(banded.view, before, lists)
    assert banded.intact()


def test_empty_dimensions() -> None:
    for shape in ((0, 2, 5, 3), (2, 0, 5, 3), (2, 2, 5, 0), (2, 2, 0, 3)):
        tensor = torch.empty(shape)
        for backend in BACKENDS:
            keep, counts = keep_of([[]] * shape[0], width=2)
            assert compact_kv_([tensor], keep, counts, backend=backend) is None


def test_autograd_sees_the_change() -> None:
    weight = torch.ones(1, 1, 4, 2, requires_grad=True)
    states = cache(1, 1, 4, 2)
    product = (weight * states).sum()
    compact_kv_([states], *keep_of([[1, 3]]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        compact_kv_([cache(1, 1, 4, 2)], *keep_of([[1, 3]]))


def test_native_is_the_default_and_one_call_serves_all_layers() -> None:
    tensors = [cache(1, 2, 6, 4) for _ in range(34)]
    with record_ops() as names:
        compact_kv_(tensors, *keep_of([[1, 5]]))
    assert names == ["erase_kernels::compact_kv_native"]
    with record_ops() as names:
        compact_kv_(tensors, *keep_of([[1, 5]]), backend="reference")
    assert names == []


def test_opcheck_and_compile() -> None:
    keep, counts = keep_of([[1, 5], [0, 2]])
    check_opcheck("compact_kv_native", [cache(2, 2, 6, 4), cache(2, 1, 7, 3)], keep, counts)

    def step(first: Tensor, second: Tensor, keep: Tensor, counts: Tensor) -> Tensor:
        compact_kv_([first, second], keep, counts)
        return first[:, :, :2] + 1

    expected = cache(2, 2, 6, 4)
    compact_kv_([expected], keep, counts)
    for _ in range(2):
        fresh = cache(2, 2, 6, 4)
        result = torch.compile(step, fullgraph=True, backend="aot_eager")(
            fresh, cache(2, 1, 7, 3), keep, counts
        )
        assert same_bits(fresh, expected)
        assert same_bits(result, expected[:, :, :2] + 1)
    check_compiled(step, cache(2, 2, 6, 4), cache(2, 1, 7, 3), keep, counts)


def good() -> dict[str, object]:
    keep, counts = keep_of([[1, 5], [0, 2]])
    tensors = [cache(2, 2, 6, 4), cache(2, 1, 6, 4, seed=1)]
    return {"tensors": tensors, "keep": keep, "counts": counts}


SHARED = cache(2, 2, 6, 4)
BAD = [
    ("tensors", [], ValueError),
    ("tensors", SHARED, TypeError),
    ("tensors", [SHARED, None], TypeError),
    ("tensors", [SHARED, cache(2, 6, 4)], ValueError),
    ("tensors", [SHARED, cache(3, 2, 6, 4)], ValueError),
    ("tensors", [SHARED, cache(2, 2, 4, 6).mT], ValueError),
    ("tensors", [SHARED, cache(2, 1, 6, 4).expand(2, 3, 6, 4)], ValueError),
    ("tensors", [SHARED, SHARED.to("meta")], ValueError),
    ("tensors", [SHARED, SHARED], ValueError),
    ("tensors", [SHARED, cache(2, 2, 6, 4).requires_grad_()], ValueError),
    ("keep", keep_of([[1, 5], [2, 2]])[0], ValueError),
    ("keep", keep_of([[1, 5], [2, 1]])[0], ValueError),
    ("keep", keep_of([[1, 6], [0, 2]])[0], ValueError),
    ("keep", keep_of([[-1, 5], [0, 2]])[0], ValueError),
    ("keep", torch.tensor([[1, 5], [0, 2]]), TypeError),
    ("keep", i32(1, 5), ValueError),
    ("counts", i32(2, 3), ValueError),
    ("counts", i32(2, -1), ValueError),
    ("counts", i32(2), ValueError),
    ("counts", torch.tensor([2, 2]), TypeError),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_bad_input_changes_nothing(name: str, value: object, error: type, backend: str) -> None:
    if name == "tensors" and isinstance(value, list):
        value = [x.to(x.dtype) if isinstance(x, Tensor) else x for x in value]
    operands = good() | {name: value}
    tensors = operands["tensors"]
    before = [x.clone() for x in tensors if isinstance(x, Tensor) and not x.is_meta]
    with pytest.raises(error, match=rf"^{name}: expected .*, got "):
        compact_kv_(**operands, backend=backend)
    after = [x for x in tensors if isinstance(x, Tensor) and not x.is_meta]
    assert all(same_bits(a, b) for a, b in zip(after, before, strict=True))
