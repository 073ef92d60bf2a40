"""compact_rows on the device: every layout and width of rows, zeros, bad lists, gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import check_status, compact_rows
from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels import compact_rows as module
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put, run
from tests.selection import check_compiled, check_opcheck, i32, same_bits
from tests.test_compact_kv import cache, keep_of
from tests.test_compact_rows import LISTS, expected_of

SMALL = {"num_warps": 1, "num_stages": 1, "UNITS": 8}  # several programs for short rows


def small_programs(backend: str) -> contextlib.AbstractContextManager[None]:
    return (
        _launch.forced("compact_rows", SMALL) if backend == "triton" else contextlib.nullcontext()
    )


def kept(tensors: list[Tensor], lists: list[list[int]], backend: str, width: int) -> list[Tensor]:
    operands = (tensors, *keep_of(lists, width))
    return run(compact_rows, *operands, backend=backend, ran="compact_rows")


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_dtype_and_layout(dtype: torch.dtype, backend: str, poisoned) -> None:
    tensors = [
        cache(3, 9, 5, dtype=dtype),
        cache(2, 2, 3, 9, 16, dtype=dtype, seed=1),  # leading dimensions
        cache(2, 1, 9, 6, dtype=dtype, seed=2),  # shared by the batch
        cache(3, 5, 9, dtype=dtype, seed=3).mT,  # features are not the unit stride
        cache(9, 2, 3, 4, dtype=dtype, seed=4).permute(1, 2, 0, 3)[..., 1:3],
        cache(3, 9, 0, dtype=dtype),
    ]
    for result, tensor in zip(kept(tensors, LISTS, backend, 6), tensors, strict=True):
        assert result.is_contiguous()
        assert same_bits(result, expected_of(tensor, LISTS, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", [1, 15, 16, 17, 31, 32, 33, 40])
def test_pieces_and_strips(features: int, backend: str, poisoned) -> None:
    """float32 rows around one piece of eight units of 4 or 16 bytes, and several of them."""
    tensor = cache(1, 12, features)
    lists = [[0, 1, 4, 5, 6, 9, 11]]
    with small_programs(backend):
        (result,) = kept([tensor], lists, backend, 9)
    assert same_bits(result, expected_of(tensor, lists, 9))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_strides_that_do_not_collapse(backend: str) -> None:
    base = cache(2, 2, 2, 2, 9, 4)
    tensors = [
        base.transpose(0, 1),  # two strides left
        base[:, :, ::2],
        base.permute(2, 0, 1, 3, 4, 5),
        cache(1, 2, 9, 4).expand(2, 2, 9, 4),  # no stride at all
        cache(2, 1, 4).expand(2, 9, 4),  # one row, nine times
        cache(2, 9, 1).expand(2, 9, 4),  # one feature, four times
        torch.zeros(2, 2, 0, 3),
        torch.zeros(0, 2, 9, 3),
    ]
    lists = [[0, 2, 8], [4]]
    results = kept(tensors[:6], lists, backend, 4)
    for result, tensor in zip(results, tensors, strict=False):
        assert same_bits(result, expected_of(tensor, lists, 4))
    results = kept(tensors[6:], [[], []], backend, 4)
    assert same_bits(results[0], torch.zeros(2, 2, 4, 3))
    assert results[1].shape == (0, 2, 4, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_entries_than_a_launch_takes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKETS", (1, 4))
    tensors = [cache(1, 9, 4 + 4 * (i % 2), seed=i) for i in range(6)]
    results = kept(tensors, [[2, 3, 7]], backend, 3)
    for result, tensor in zip(results, tensors, strict=True):
        assert same_bits(result, expected_of(tensor, [[2, 3, 7]], 3))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200 if ON_GPU else 10, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_lists(
    backend: str, sets: list[set[int]], lead: int, features: int, shared: bool
) -> None:
    lists = [sorted(x) for x in sets]
    tensor = cache(lead, 1 if shared else len(lists), 12, features)
    (result,) = kept([tensor], lists, backend, 12)
    assert same_bits(result, expected_of(tensor, lists, 12))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_shapes(backend: str) -> None:
    assert same_bits(kept([torch.ones(2, 0, 3)], [[], []], backend, 2)[0], torch.zeros(2, 2, 3))
    assert kept([torch.ones(2, 4, 3)], [[], []], backend, 0)[0].numel() == 0
    assert kept([torch.ones(1, 4, 3)], [], backend, 0)[0].shape == (0, 0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_left_out_may_hold_anything(backend: str, poisoned) -> None:
    tensor = cache(3, 9, 5)
    tensor[:, 1], tensor[2, :8] = float("nan"), float("nan")
    before = tensor.clone()
    (result,) = kept([tensor], LISTS, backend, 6)
    assert not result.isnan().any()
    assert same_bits(tensor, before)


BAD = [  # slots and count of the first batch row, bit, rows that come out
    ([1, 5, 4], 3, Status.KEEP, [1, 5, None]),
    ([1, 1, 4], 3, Status.KEEP, [1, None, 4]),
    ([-5, -3, 4], 3, Status.KEEP, [None, None, 4]),
    ([1, 5, 9], 3, Status.KEEP, [1, 5, None]),
    ([1, 5, 2**31 - 1], 3, Status.KEEP, [1, 5, None]),
    ([1, 5, 7], 4, Status.COUNTS, [None] * 3),
    ([1, 5, 7], -1, Status.COUNTS, [None] * 3),
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("slots", "count", "bit", "rows"), BAD)
def test_bad_rows_are_zero_and_reported(
    slots: list[int], count: int, bit: Status, rows: list[int | None], backend: str, poisoned
) -> None:
    tensor = cache(2, 9, 5) + 1
    keep = torch.tensor([slots, [0, 3, 8]], dtype=torch.int32)
    operands = ([tensor], keep, i32(count, 3))
    (result,) = run(compact_rows, *operands, backend=backend, ran="compact_rows", check=False)
    assert status_word(DEVICE).item() == bit
    argument = "keep" if bit == Status.KEEP else "counts"
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        check_status(DEVICE)
    zero = torch.zeros(5)
    expected = [zero if row is None else tensor[0, row] for row in rows]
    assert same_bits(result[0], torch.stack(expected))
    assert same_bits(result[1], tensor[1, [0, 3, 8]])


@pytest.mark.parametrize("backend", REPORTING)
def test_a_fault_between_two_programs_is_found(backend: str) -> None:
    """The last row of a program and the first of the next do not ascend."""
    features = 16 if backend == "triton" else 1024  # two rows a program
    with small_programs(backend):
        operands = ([cache(1, 9, features)], *keep_of([[0, 5, 5, 6]]))
        run(compact_rows, *operands, backend=backend, ran="compact_rows", check=False)
    with pytest.raises(ValueError, match=r"^keep: expected"):
        check_status(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str) -> None:
    keep, counts = put(list(keep_of(LISTS, width=6)))
    full = put(torch.randn(3, 9, 2, dtype=torch.float64)).requires_grad_()
    shared = put(torch.randn(2, 1, 9, 3, dtype=torch.float64)).requires_grad_()

    def loss(*tensors: Tensor) -> Tensor:
        results = compact_rows(tensors, keep, counts, backend=backend)
        return (results[0] ** 2).sum() + (results[1] ** 3).sum()

    loss(full, shared).backward()
    ours = [full.grad.cpu(), shared.grad.cpu()]
    copies = [x.detach().cpu().requires_grad_() for x in (full, shared)]
    results = compact_rows(copies, keep.cpu(), counts.cpu(), backend="reference")
    ((results[0] ** 2).sum() + (results[1] ** 3).sum()).backward()
    for mine, copy in zip(ours, copies, strict=True):
        assert torch.allclose(mine, copy.grad, rtol=1e-12, atol=0)
    positions = put(cache(1, 9, 1, dtype=torch.int64))
    half = full.detach().to(torch.bfloat16).requires_grad_()
    outputs = compact_rows([half, positions], keep, counts, backend=backend)
    assert not outputs[1].requires_grad
    check_status(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    keep, counts = put(list(keep_of(LISTS)))
    tensors = put([cache(3, 9, 5), cache(2, 1, 9, 3), cache(3, 9, 1).long()])
    tensors[0].requires_grad_()
    check_opcheck(f"compact_rows_{backend}", tensors, keep, counts)

    def step(*operands: Tensor) -> list[Tensor]:
        return compact_rows(operands, keep, counts, backend=backend)

    for a, b in zip(check_compiled(step, *tensors), step(*tensors), strict=True):
        assert same_bits(a.detach().cpu(), b.detach().cpu())
    check_status(DEVICE)


if ON_GPU:

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_real_shapes(backend: str) -> None:
        lists = [sorted(torch.randperm(10800)[:2500].tolist())]
        tensors = [
            cache(1, 10800, 3584, dtype=torch.bfloat16),
            cache(3, 1, 10800, 128, dtype=torch.bfloat16, seed=1),
            cache(3, 1, 10800, 128, seed=2),
            cache(1, 10800, 1, dtype=torch.int64, seed=3),
        ]
        for result, tensor in zip(kept(tensors, lists, backend, 2500), tensors, strict=True):
            assert same_bits(result, expected_of(tensor, lists, 2500))
