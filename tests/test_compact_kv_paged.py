"""compact_kv_ on paged caches: through the block table, with the blocks it frees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import compact_kv_
from erase_kernels.testing import record_ops
from tests.selection import BACKENDS, Banded, check_compiled, check_opcheck, i32, same_bits
from tests.test_compact_kv import cache, keep_of

TABLE = torch.tensor([[5, 2, 7, -1], [0, 3, 6, 1]], dtype=torch.int32)
SIZE = 3  # slots of a block


def logical(tensor: Tensor, table: Tensor, b: int) -> Tensor:
    """The slots of one batch row in order: [slots, Hk, d]."""
    return torch.cat([tensor[block] for block in table[b].tolist() if block >= 0])


def assert_moved(after: Tensor, before: Tensor, table: Tensor, lists: list[list[int]]) -> None:
    for b, slots in enumerate(lists):
        moved = logical(after, table, b)[: len(slots)]
        assert same_bits(moved, logical(before, table, b)[slots])


LISTS = [
    [[0, 1, 2, 3, 4, 5, 6, 7, 8], [11]],
    [[], [0]],
    [[1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 5, 6, 7, 9, 10, 11]],
    [[2, 3, 5, 8], [1, 4, 7, 10]],
]
FREED = [
    [[-1, -1, -1, -1], [-1, 3, 6, 1]],
    [[5, 2, 7, -1], [-1, 3, 6, 1]],
    [[-1, -1, -1, -1], [-1, -1, -1, 1]],
    [[-1, -1, 7, -1], [-1, -1, 6, 1]],
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lists", "freed"), list(zip(LISTS, FREED, strict=True)))
def test_slots_move_through_the_table(
    lists: list[list[int]], freed: list[list[int]], backend: str, poisoned
) -> None:
    before = [
        cache(8, SIZE, 2, 5),
        cache(9, SIZE, 1, 4, dtype=torch.bfloat16),
        cache(8, 2, SIZE, 5).transpose(1, 2),  # heads outside slots
        cache(8, SIZE, 2, 10, seed=4)[..., :5],  # heads apart
    ]
    banded = [Banded(tensor) for tensor in before]
    plain = [tensor.clone(memory_format=torch.preserve_format) for tensor in before]
    tensors = [*plain, *(b.view for b in banded)]
    result = compact_kv_(tensors, *keep_of(lists), block_table=TABLE, backend=backend)
    assert result is not None
    assert result.tolist() == freed
    assert result.dtype == torch.int32
    for after, old in zip(tensors, before * 2, strict=True):
        assert_moved(after, old, TABLE, lists)
    assert all(b.intact() for b in banded)


def test_blocks_of_nobody_are_untouched() -> None:
    before = cache(8, SIZE, 2, 5)
    after = before.clone()
    lists = [[3, 5, 8], [2, 10]]
    compact_kv_([after], *keep_of(lists), block_table=TABLE, backend="native")
    assert same_bits(after[4], before[4])
    assert same_bits(after[7], before[7])  # its slots were read, none written


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_table_matches_the_reference(data: st.DataObject) -> None:
    size, batch, width = (data.draw(st.integers(1, high)) for high in (4, 3, 4))
    blocks = batch * width + 1
    order = data.draw(st.permutations(range(blocks)))
    table = torch.tensor(order[: batch * width], dtype=torch.int32).view(batch, width)
    slots = st.sets(st.integers(0, width * size - 1))
    lists = [sorted(data.draw(slots)) for _ in range(batch)]
    before = cache(blocks, size, 2, 3)
    after, expected = before.clone(), before.clone()
    ours = compact_kv_([after], *keep_of(lists), block_table=table, backend="native")
    theirs = compact_kv_([expected], *keep_of(lists), block_table=table, backend="reference")
    assert_moved(after, before, table, lists)
    assert ours is not None
    assert theirs is not None
    assert same_bits(ours, theirs)


def test_native_is_the_default_opcheck_and_compile() -> None:
    keep, counts = keep_of([[2, 3], [1, 7]])
    with record_ops() as names:
        compact_kv_([cache(8, SIZE, 2, 5)], keep, counts, block_table=TABLE)
    assert names == ["erase_kernels::compact_kv_paged_native"]
    tensors = [cache(8, SIZE, 2, 5), cache(8, SIZE, 1, 2)]
    check_opcheck("compact_kv_paged_native", tensors, keep, counts, TABLE)

    def step(tensor: Tensor, keep: Tensor, counts: Tensor, table: Tensor) -> Tensor | None:
        return compact_kv_([tensor], keep, counts, block_table=table)

    freed = check_compiled(step, cache(8, SIZE, 2, 5), keep, counts, TABLE)
    assert freed.tolist() == [[-1, 2, 7, -1], [-1, 3, 6, 1]]


BAD = [
    ("keep", keep_of([[2, 9], [1, 7]])[0], ValueError, "block_table"),  # in an absent block
    ("keep", keep_of([[2, 12], [1, 7]])[0], ValueError, "keep"),
    ("keep", keep_of([[3, 2], [1, 7]])[0], ValueError, "keep"),
    ("block_table", TABLE + 3, ValueError, "block_table"),
    ("block_table", TABLE.clone().fill_(2), ValueError, "block_table"),
    ("block_table", TABLE.long(), TypeError, "block_table"),
    ("block_table", TABLE[:1], ValueError, "block_table"),
    ("tensors", [cache(8, SIZE, 2, 5), cache(8, SIZE + 1, 2, 5)], ValueError, "tensors"),
    ("tensors", [cache(8, 0, 2, 5)], ValueError, "tensors"),
    ("counts", i32(2, 3), ValueError, "counts"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "value", "error", "blamed"), BAD)
def test_bad_input_changes_nothing(
    name: str, value: object, error: type, blamed: str, backend: str
) -> None:
    keep, counts = keep_of([[2, 8], [1, 7]])
    tensors = [cache(8, SIZE, 2, 5), cache(8, SIZE, 1, 2)]
    operands = {"tensors": tensors, "keep": keep, "counts": counts, "block_table": TABLE}
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(error, match=rf"^{blamed}: expected .*, got "):
        compact_kv_(**(operands | {name: value}), backend=backend)
    assert all(same_bits(a, b) for a, b in zip(tensors, before, strict=True))
