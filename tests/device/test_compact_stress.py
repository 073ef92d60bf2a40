"""In-place compaction where chunks overlap: many random problems, thread orders, streams.

On a GPU the problems are large, are launched back to back and on several streams, and are compared
with `index_select` on the device. On the CPU they are small, and the emulated threads run in
several orders.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from erase_kernels import check_status, compact_kv_, compact_rows
from tests import emu
from tests.device.support import BACKENDS, DEVICE, ON_GPU, run
from tests.selection import i32, same_bits
from tests.test_compact_kv import cache, keep_of

GENERATOR = torch.Generator().manual_seed(0)


def dropping(length: int, dropped: int) -> Tensor:
    """All slots but a few of the first: everything behind them moves by a few places."""
    mask = torch.ones(length, dtype=torch.bool)
    mask[torch.randperm(min(64, length), generator=GENERATOR)[:dropped]] = False
    return mask.nonzero()[:, 0]


def random_slots(share: float) -> Callable[[int], Tensor]:
    def make(length: int) -> Tensor:
        return (torch.rand(length, generator=GENERATOR) < share).nonzero()[:, 0]

    return make


def pieces(length: int) -> Tensor:
    """Runs of random lengths with random gaps."""
    steps = torch.randint(1, 100, (length,), generator=GENERATOR).cumsum(0)
    inside = torch.searchsorted(steps, torch.arange(length), right=True) % 2 == 1
    return inside.nonzero()[:, 0]


LISTS: dict[str, Callable[[int], Tensor]] = {
    "one-place": lambda length: torch.arange(1, length),
    "few-dropped": lambda length: dropping(length, 3),
    "most": random_slots(0.9),
    "half": random_slots(0.5),
    "few": random_slots(0.1),
    "every-other": lambda length: torch.arange(1, length, 2),
    "second-half": lambda length: torch.arange(length // 2, length),
    "pieces": pieces,
    "prefix": lambda length: torch.cat(
        [torch.arange(length // 3), torch.arange(length // 3 + 1, length)]
    ),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Caches of one problem."""

    layers: int
    batch: int
    heads: int
    length: int
    depth: int
    dtype: torch.dtype

    def caches(self) -> list[Tensor]:
        size = (self.batch, self.heads, self.length, self.depth)
        return [
            torch.randint(-99, 99, size, dtype=torch.int16, device=DEVICE).to(self.dtype)
            for _ in range(self.layers)
        ]


SHAPES = (
    [
        Shape(34, 1, 4, 10813, 128, torch.bfloat16),
        Shape(16, 4, 8, 4099, 64, torch.float16),
        Shape(8, 2, 3, 3001, 80, torch.float32),
        Shape(4, 3, 2, 2053, 5, torch.float32),
        Shape(4, 1, 2, 1031, 33, torch.int8),
        Shape(4, 2, 2, 1500, 3, torch.bfloat16),
    ]
    if ON_GPU
    else [
        Shape(2, 1, 1, 500, 64, torch.bfloat16),  # chunks of 64 rows, four of them at once
        Shape(1, 2, 1, 300, 80, torch.bfloat16),  # slices of five units: 100 rows and idle threads
        Shape(1, 1, 1, 400, 5, torch.float32),  # 4-byte units
        Shape(1, 1, 1, 150, 3, torch.bfloat16),  # 2-byte units
        Shape(1, 1, 1, 120, 33, torch.int8),  # single bytes
    ]
)
TURNS = 3 if ON_GPU else 1
PAGE = 16 if ON_GPU else 3  # slots of a block
ORDERED = [(b, o) for b in BACKENDS for o in (emu.ORDERS if b == "emulated" else ("any",))]
in_orders = pytest.mark.parametrize(("backend", "order"), ORDERED)
each_shape = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.length}x{s.depth}-{str(s.dtype)[6:]}"
)


@contextlib.contextmanager
def ordered(order: str) -> Iterator[None]:
    with emu.order(order) if order in emu.ORDERS else contextlib.nullcontext():
        yield


def lists_of(shape: Shape, name: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """keep and counts on the device; one list per batch row, the others of random kinds."""
    GENERATOR.manual_seed(shape.length + 31 * len(name))
    lists = [LISTS[name](shape.length)]
    lists += [random_slots(0.2 * b)(shape.length) for b in range(1, shape.batch)]
    keep, counts = keep_of([x.tolist() for x in lists])
    return keep.to(DEVICE), counts.to(DEVICE), [x.to(DEVICE) for x in lists]


def assert_moved(after: list[Tensor], expected: list[list[Tensor]]) -> None:
    for tensor, rows in zip(after, expected, strict=True):
        for b, right in enumerate(rows):
            assert torch.equal(tensor[b, :, : right.shape[1]], right)


@in_orders
@each_shape
@pytest.mark.parametrize("name", LISTS)
def test_caches_back_to_back(shape: Shape, name: str, backend: str, order: str) -> None:
    keep, counts, lists = lists_of(shape, name)
    problems = [shape.caches() for _ in range(TURNS)]
    expected = [
        [[x[b].index_select(1, slots) for b, slots in enumerate(lists)] for x in caches]
        for caches in problems
    ]
    with ordered(order):
        for caches in problems:
            compact_kv_(caches, keep, counts, backend=backend)
    for caches, right in zip(problems, expected, strict=True):
        assert_moved(caches, right)
    check_status(DEVICE)


@in_orders
@each_shape
@pytest.mark.parametrize("name", ["one-place", "most", "second-half", "pieces"])
def test_pages(shape: Shape, name: str, backend: str, order: str) -> None:
    keep, counts, lists = lists_of(shape, name)
    width = -(-shape.length // PAGE)
    blocks = shape.batch * width + 3
    size = (blocks, PAGE, shape.heads, shape.depth)
    table = torch.randperm(blocks, generator=GENERATOR)[: shape.batch * width]
    table = table.view(shape.batch, width).to(DEVICE)
    caches = [
        torch.randint(-99, 99, size, dtype=torch.int16, device=DEVICE).to(shape.dtype)
        for _ in range(shape.layers)
    ]
    expected = [
        [x[table[b]].flatten(0, 1).index_select(0, slots) for b, slots in enumerate(lists)]
        for x in caches
    ]
    with ordered(order):
        freed = compact_kv_(
            caches, keep, counts, block_table=table.to(torch.int32), backend=backend
        )
    for tensor, rows in zip(caches, expected, strict=True):
        for b, right in enumerate(rows):
            assert torch.equal(tensor[table[b]].flatten(0, 1)[: right.shape[0]], right)
    assert freed is not None
    for b, slots in enumerate(lists):
        held = -(-len(slots) // PAGE)
        assert freed[b, :held].eq(-1).all()
        assert freed[b, held:].eq(table[b, held:]).all()
    check_status(DEVICE)


@in_orders
@pytest.mark.parametrize("features", [2048, 2049, 4100])
def test_rows_longer_than_a_block(features: int, backend: str, order: str) -> None:
    """float32 rows of 512, 2049 and 1025 units: one piece, and pieces that do not come out even."""
    tensor = cache(2, 7, features)
    lists = [[0, 2, 3, 6], [5]]
    with ordered(order):
        (result,) = run(
            compact_rows, [tensor], *keep_of(lists), backend=backend, ran="compact_rows"
        )
    for b, slots in enumerate(lists):
        assert same_bits(result[b, : len(slots)], tensor[b, slots])
        assert result[b, len(slots) :].eq(0).all()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_offsets_beyond_32_bits(backend: str) -> None:
    """Slots 2 GiB apart: slot 2 lies where a 32-bit offset is 0 again."""
    stride = 2**31
    memory = torch.empty(2 * stride + 64, dtype=torch.int8, device=DEVICE)
    view = memory.as_strided((1, 1, 3, 32), (2 * stride, 2 * stride, stride, 1))
    for slot in range(3):
        view[0, 0, slot] = slot
    (rows,) = run(
        compact_rows, [view[0]], i32(0, 2)[None], i32(2), backend=backend, ran="compact_rows"
    )
    assert rows[0, :, 0].tolist() == [0, 2]
    keep, counts = i32(2)[None].to(DEVICE), i32(1).to(DEVICE)
    compact_kv_([view], keep, counts, backend=backend)
    assert view[0, 0, :, 0].tolist() == [2, 1, 2]


if ON_GPU:
    STREAMS = 4

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_several_streams(backend: str) -> None:
        shape = SHAPES[0]
        for names in zip(*[iter([*LISTS, *LISTS, *LISTS, *LISTS])] * STREAMS, strict=False):
            problems = [(shape.caches(), *lists_of(shape, name)) for name in names]
            expected = [
                [[x[0].index_select(1, lists[0])] for x in caches]
                for caches, _, _, lists in problems
            ]
            torch.cuda.synchronize()
            for caches, keep, counts, _ in problems:
                with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                    compact_kv_(caches, keep, counts, backend=backend)
            torch.cuda.synchronize()
            for (caches, _, _, _), right in zip(problems, expected, strict=True):
                assert_moved(caches, right)
        check_status(DEVICE)

else:

    @pytest.mark.parametrize(
        ("tensors", "layouts", "launches"), [(34, 1, 1), (16, 16, 1), (257, 1, 2), (20, 20, 2)]
    )
    def test_launches_of_the_emulated_kernels(tensors: int, layouts: int, launches: int) -> None:
        """One for all layers as far as the table goes, whatever their widths."""
        before = [cache(1, 1, 6, 1 + i % layouts, seed=i) for i in range(tensors)]
        after = [x.clone() for x in before]
        start = emu.launches()
        compact_kv_(after, *keep_of([[1, 4]]), backend="emulated")
        assert emu.launches() == start + launches
        for new, old in zip(after, before, strict=True):
            assert same_bits(new[:, :, :2], old[:, :, [1, 4]])

    def test_launches_of_emulated_rows() -> None:
        tensors = [cache(1, 9, 1 + i, dtype=torch.int8) for i in range(33)]
        start = emu.launches()
        results = compact_rows(tensors, *keep_of([[2, 8]]), backend="emulated")
        assert emu.launches() == start + 2
        for result, tensor in zip(results, tensors, strict=True):
            assert same_bits(result, tensor[:, [2, 8]])
