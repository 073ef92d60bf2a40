"""compact_kv_ on paged caches on the device: through the block table, with the blocks it frees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import check_status, compact_kv_
from erase_kernels._status import Status, status_word
from erase_kernels.triton_kernels import _launch
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put, run
from tests.device.test_compact_kv import SMALL
from tests.selection import Banded, check_compiled, check_opcheck, i32, same_bits
from tests.test_compact_kv import cache, keep_of
from tests.test_compact_kv_paged import FREED, LISTS, SIZE, TABLE, assert_moved


def compact(
    bases: Sequence[Tensor],
    keep: Tensor,
    counts: Tensor,
    table: Tensor,
    *,
    backend: str,
    view: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda bases: bases,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Compacts views of ``bases``; the freed blocks, and the bases."""
    freed = compact_kv_(view(bases), keep, counts, block_table=table, backend=backend)
    return freed, bases


def moved(
    before: Sequence[Tensor], lists: list[list[int]], table: Tensor, backend: str, **options
) -> tuple[Tensor, list[Tensor]]:
    bases = [tensor.clone(memory_format=torch.preserve_format) for tensor in before]
    operands = (*keep_of(lists), table)
    return run(compact, bases, *operands, backend=backend, ran="compact_kv_paged", **options)


def small_chunks(backend: str) -> contextlib.AbstractContextManager[None]:
    if backend != "triton":
        return contextlib.nullcontext()
    return _launch.forced("compact_kv_paged", SMALL)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lists", "freed"), list(zip(LISTS, FREED, strict=True)))
def test_slots_move_through_the_table(
    lists: list[list[int]], freed: list[list[int]], backend: str, poisoned
) -> None:
    contents = [
        cache(8, SIZE, 2, 5),
        cache(9, SIZE, 1, 24, dtype=torch.bfloat16),
        cache(8, 2, SIZE, 5),  # heads outside slots
    ]
    banded = Banded(cache(8, SIZE, 1, 4, dtype=torch.int8))

    def view(bases: Sequence[Tensor]) -> list[Tensor]:
        return [bases[0], bases[1], bases[2].transpose(1, 2), bases[3][1:-1, 1:-1, 1:-1, 1:-1]]

    bases = [*contents, banded.base]
    result, after = moved(bases, lists, TABLE, backend, view=view)
    assert result.tolist() == freed
    assert result.dtype == torch.int32
    for new, old in zip(view(after), view(bases), strict=True):
        assert_moved(new, old, TABLE, lists)
    banded.base = after[3]
    assert banded.intact()
    assert same_bits(after[0][4], contents[0][4])  # a block of nobody


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100 if ON_GPU else 6, deadline=None)
@given(st.data())
def test_any_table_matches_the_reference(backend: str, data: st.DataObject) -> None:
    size, batch, width = (data.draw(st.integers(1, high)) for high in (5, 2, 5))
    blocks = batch * width + 1
    order = data.draw(st.permutations(range(blocks)))
    table = torch.tensor(order[: batch * width], dtype=torch.int32).view(batch, width)
    slots = st.sets(st.integers(0, width * size - 1))
    lists = [sorted(data.draw(slots)) for _ in range(batch)]
    before = cache(blocks, size, 1, 8, dtype=torch.bfloat16)
    with small_chunks(backend):
        ours, (after,) = moved([before], lists, table, backend)
    expected = before.clone()
    theirs = compact_kv_([expected], *keep_of(lists), block_table=table, backend="reference")
    assert theirs is not None
    assert_moved(after, before, table, lists)
    assert same_bits(ours, theirs)


ROW = [2, 3, 8]  # in all three blocks of the first row of TABLE
OTHER = [1, 7]  # in blocks 0, 3 and 6
BAD = [  # table entries, first row of keep, bit, rows that stay
    ({(0, 1): 8}, ROW, Status.BLOCK_TABLE, [0]),
    ({(0, 1): -1}, ROW, Status.BLOCK_TABLE, [0]),
    ({(0, 1): 5}, ROW, Status.BLOCK_TABLE, [0]),  # twice in the same row
    ({(0, 1): 6}, ROW, Status.BLOCK_TABLE, [0, 1]),  # in both rows
    ({}, [2, 3, 12], Status.KEEP, [0]),
    ({}, [2, 3, 9], Status.BLOCK_TABLE, [0]),  # in an absent block
    ({}, [3, 2, 8], Status.KEEP, [0]),
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("entries", "slots", "bit", "staying"), BAD)
def test_a_bad_row_stays_frees_nothing_and_is_reported(
    entries: dict[tuple[int, int], int],
    slots: list[int],
    bit: Status,
    staying: list[int],
    backend: str,
) -> None:
    table = TABLE.clone()
    for place, block in entries.items():
        table[place] = block
    before = [cache(8, SIZE, 1, 4), cache(9, SIZE, 1, 2, seed=1)]
    freed, results = moved(before, [slots, OTHER], table, backend, check=False)
    assert status_word(DEVICE).item() == bit
    argument = "keep" if bit == Status.KEEP else "block_table"
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        check_status(DEVICE)
    assert freed[0].tolist() == [-1] * 4
    assert freed[1].tolist() == ([-1] * 4 if 1 in staying else [-1, 3, 6, 1])
    for after, old in zip(results, before, strict=True):
        if 1 in staying:
            assert same_bits(after, old)
        else:
            lists = [[], OTHER]
            assert_moved(after, old, TABLE, lists)
            for block in (5, 2, 7):
                assert same_bits(after[block], old[block])


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_after_the_last_kept_slot_may_be_anything(backend: str) -> None:
    table = torch.tensor([[5, 2, -7, 99], [0, 3, 5, 5]], dtype=torch.int32)
    before = cache(8, SIZE, 1, 4)
    freed, (after,) = moved([before], [[1, 4], [5]], table, backend)
    assert freed.tolist() == [[-1, 2, -7, 99], [-1, 3, 5, 5]]
    for b, (blocks, slots) in enumerate((([5, 2], [1, 4]), ([0, 3], [5]))):
        old = torch.cat([before[block] for block in blocks])
        assert same_bits(after[table[b, 0], : len(slots)], old[slots])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_shapes(backend: str) -> None:
    freed, _ = moved([cache(8, SIZE, 1, 4)], [[], []], TABLE, backend)
    assert same_bits(freed, TABLE)
    freed, _ = moved([cache(8, SIZE, 1, 0)], [[4], []], TABLE, backend)
    assert freed.tolist() == [[-1, 2, 7, -1], TABLE[1].tolist()]
    freed, _ = moved([cache(0, SIZE, 1, 4)], [[], []], TABLE, backend)
    assert same_bits(freed, TABLE)
    freed, _ = moved([cache(8, SIZE, 1, 4)], [[], []], TABLE[:, :0], backend)
    assert freed.shape == (2, 0)
    freed, _ = moved([cache(8, SIZE, 1, 4)], [], TABLE[:0], backend)
    assert freed.shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_memory_is_refused(backend: str) -> None:
    tensor = put(cache(8, SIZE, 1, 4))
    keep, counts, table = put([*keep_of([[1, 5], [0, 2]]), TABLE])
    with pytest.raises(ValueError, match=r"^tensors: expected .* same memory at places 0 and 1"):
        compact_kv_([tensor, tensor], keep, counts, block_table=table, backend=backend)
    assert same_bits(tensor.cpu(), cache(8, SIZE, 1, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    keep, counts, table = put([*keep_of([[2, 3], [1, 7]]), TABLE])
    tensors = put([cache(8, SIZE, 1, 4), cache(8, SIZE, 1, 2)])
    check_opcheck(f"compact_kv_paged_{backend}", tensors, keep, counts, table)
    check_status(DEVICE)

    def step(tensor: Tensor, keep: Tensor, counts: Tensor, table: Tensor) -> Tensor | None:
        return compact_kv_([tensor], keep, counts, block_table=table, backend=backend)

    freed = check_compiled(step, put(cache(8, SIZE, 1, 4)), keep, counts, table)
    assert freed.tolist() == [[-1, 2, 7, -1], [-1, 3, 6, 1]]


if ON_GPU:

    @pytest.mark.parametrize("depth", [128, 5])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_long_overlaps_many_times(depth: int, backend: str) -> None:
        size, width, heads = 16, 512, 4
        for turn in range(20):
            order = torch.randperm(2 * width + 7, device=DEVICE)
            table = order[: 2 * width].to(torch.int32).view(2, width)
            tensors = [
                torch.randint(-99, 99, (2 * width + 7, size, heads, depth), device=DEVICE)
                .to(torch.bfloat16)
                for _ in range(4)
            ]  # fmt: skip
            mask = torch.ones(width * size, dtype=torch.bool, device=DEVICE)
            mask[torch.randperm(99, device=DEVICE)[: 1 + turn % 3]] = False
            keep = mask.nonzero()[:, 0]
            expected = [
                x[table.long()].flatten(1, 2).index_select(1, keep) for x in tensors
            ]  # fmt: skip
            counts = torch.full((2,), keep.numel(), dtype=torch.int32, device=DEVICE)
            kept = keep.to(torch.int32).expand(2, -1)
            compact_kv_(tensors, kept, counts, block_table=table, backend=backend)
            for after, right in zip(tensors, expected, strict=True):
                moved_rows = after[table.long()].flatten(1, 2)[:, : keep.numel()]
                assert torch.equal(moved_rows, right)
        check_status(DEVICE)


@pytest.mark.parametrize("backend", REPORTING)
def test_counts_out_of_range_are_reported(backend: str) -> None:
    before = cache(8, SIZE, 1, 4)
    operands = (keep_of([ROW, ROW])[0], i32(4, -1), TABLE)
    freed, (after,) = run(
        compact, [before.clone()], *operands, backend=backend, ran="compact_kv_paged", check=False
    )
    with pytest.raises(ValueError, match=r"^counts: expected"):
        check_status(DEVICE)
    assert freed.eq(-1).all()
    assert same_bits(after, before)
