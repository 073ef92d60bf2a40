"""compact_rows: kept rows in new tensors, zeros behind them, gradients back to where they came."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import compact_rows
from erase_kernels.testing import record_ops
from tests.selection import BACKENDS, check_compiled, check_opcheck, i32, same_bits
from tests.test_compact_kv import BAD as BAD_LISTS
from tests.test_compact_kv import cache, keep_of

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
LISTS = [[0, 2, 3, 7], [], [8]]


def expected_of(tensor: Tensor, lists: list[list[int]], width: int) -> Tensor:
    """The definition, one batch row at a time."""
    shape = (*tensor.shape[:-3], len(lists), width, tensor.shape[-1])
    result = torch.zeros(shape, dtype=tensor.dtype)
    for b, rows in enumerate(lists):
        source = tensor[..., b if tensor.shape[-3] == len(lists) else 0, :, :]
        for place, row in enumerate(rows):
            result[..., b, place, :] = source[..., row, :]
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_dtype(dtype: torch.dtype, backend: str, poisoned) -> None:
    tensors = [
        cache(3, 9, 5, dtype=dtype),
        cache(2, 4, 3, 9, 3, dtype=dtype, seed=1),  # leading dimensions
        cache(2, 1, 9, 6, dtype=dtype, seed=2),  # shared by the batch
        cache(3, 5, 9, dtype=dtype, seed=3).mT,  # features are not the unit stride
        cache(9, 2, 3, 4, dtype=dtype, seed=4).permute(1, 2, 0, 3)[..., 1:3],
        cache(3, 9, 0, dtype=dtype),
    ]
    results = compact_rows(tensors, *keep_of(LISTS, width=6), backend=backend)
    assert isinstance(results, list)
    for result, tensor in zip(results, tensors, strict=True):
        assert result.is_contiguous()
        assert same_bits(result, expected_of(tensor, LISTS, 6))


@pytest.mark.parametrize("rows", [255, 256, 257, 700])
def test_long_lists_and_threads(rows: int, threads) -> None:
    kept = [sorted(torch.randperm(900)[:rows].tolist())]
    hidden = cache(1, 900, 512)  # from 513 rows on, shared out among the threads
    for result in threads(lambda: compact_rows([hidden], *keep_of(kept, width=rows + 3))[0]):
        assert same_bits(result, expected_of(hidden, kept, rows + 3))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_lists(sets: list[set[int]], lead: int, features: int, shared: bool) -> None:
    lists = [sorted(x) for x in sets]
    tensor = cache(lead, 1 if shared else len(lists), 12, features)
    for backend in BACKENDS:
        result = compact_rows([tensor], *keep_of(lists, width=12), backend=backend)[0]
        assert same_bits(result, expected_of(tensor, lists, 12))


def test_empty_shapes() -> None:
    for backend in BACKENDS:
        keep, counts = keep_of([[], []], width=2)
        no_rows = compact_rows([torch.ones(2, 0, 3)], keep, counts, backend=backend)[0]
        assert same_bits(no_rows, torch.zeros(2, 2, 3))
        keep, counts = keep_of([[], []], width=0)
        assert compact_rows([torch.ones(2, 4, 3)], keep, counts, backend=backend)[0].numel() == 0


def test_inputs_are_not_changed_and_rows_left_out_may_hold_anything() -> None:
    tensor = cache(3, 9, 5)
    tensor[:, 1], tensor[2, :8] = float("nan"), float("nan")
    before = tensor.clone()
    for backend in BACKENDS:
        result = compact_rows([tensor], *keep_of(LISTS, width=6), backend=backend)[0]
        assert not result.isnan().any()
        assert same_bits(tensor, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str) -> None:
    keep, counts = keep_of(LISTS, width=6)
    full = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(2, 1, 9, 3, dtype=torch.float64, requires_grad=True)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(compact_rows(tensors, keep, counts, backend=backend))

    assert torch.autograd.gradcheck(run, (full, shared))
    half = full.detach().to(torch.bfloat16).requires_grad_()
    positions = cache(1, 9, 1, dtype=torch.int64)
    outputs = compact_rows([half, positions], keep, counts, backend=backend)
    assert not outputs[1].requires_grad
    (outputs[0] * 3).sum().backward()
    kept = torch.zeros(3, 9, 2)
    for b, rows in enumerate(LISTS):
        kept[b, rows] = 3
    assert torch.equal(half.grad.float(), kept)


def test_native_is_the_default_on_the_cpu() -> None:
    operands = ([cache(3, 9, 5)], *keep_of(LISTS))
    with record_ops() as names:
        compact_rows(*operands)
    assert names == ["erase_kernels::compact_rows_native"]
    with record_ops() as names:
        compact_rows(*operands, backend="reference")
    assert names == []


def test_opcheck_and_compile() -> None:
    keep, counts = keep_of(LISTS)
    tensors = [cache(3, 9, 5).requires_grad_(), cache(2, 1, 9, 3), cache(3, 9, 1).long()]
    check_opcheck("compact_rows_native", tensors, keep, counts)
    compiled = check_compiled(lambda *x: compact_rows(x, keep, counts), *tensors)
    for a, b in zip(compiled, compact_rows(tensors, keep, counts), strict=True):
        assert same_bits(a, b)


BAD = [
    ("tensors", [], ValueError),
    ("tensors", cache(2, 6, 4), TypeError),
    ("tensors", [cache(2, 6, 4), 3], TypeError),
    ("tensors", [cache(6, 4)], ValueError),
    ("tensors", [cache(3, 6, 4)], ValueError),
    ("tensors", [cache(2, 6, 4, dtype=torch.complex128)], TypeError),
    ("tensors", [cache(2, 6, 4), cache(2, 6, 4).to("meta")], ValueError),
    ("keep", i32(1, 5)[None].long(), TypeError),
    *[entry for entry in BAD_LISTS if entry[0] != "tensors"],
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_bad_input(name: str, value: object, error: type, backend: str) -> None:
    keep, counts = keep_of([[1, 5], [0, 2]])
    operands = {"tensors": [cache(2, 6, 4)], "keep": keep, "counts": counts}
    with pytest.raises(error, match=rf"^{name}: expected .*, got "):
        compact_rows(**(operands | {name: value}), backend=backend)
