"""compact_kv_ on the device: contiguous caches, every width of a move, overlaps, bad lists."""

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
from erase_kernels.triton_kernels import _launch, compact_kv
from erase_kernels.triton_kernels._moves import by_value
from tests.device.support import BACKENDS, DEVICE, ON_GPU, REPORTING, put, run
from tests.selection import Banded, check_compiled, check_opcheck, i32, same_bits
from tests.test_compact_kv import assert_moved, cache, keep_of

# Chunks of four slots, slices of 16 bytes, eight list entries at a time: all loops turn.
SMALL = {"num_warps": 1, "num_stages": 1, "ROWS": 4, "SLICE": 16, "CHECK": 8}


def compact(
    bases: Sequence[Tensor],
    keep: Tensor,
    counts: Tensor,
    *,
    backend: str,
    view: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda bases: bases,
) -> Sequence[Tensor]:
    """Compacts views of ``bases`` and returns the bases."""
    assert compact_kv_(view(bases), keep, counts, backend=backend) is None
    return bases


def moved(before: Sequence[Tensor], lists: list[list[int]], backend: str, **options) -> list:
    bases = [tensor.clone(memory_format=torch.preserve_format) for tensor in before]
    lists_ = keep_of(lists, options.pop("width", None))
    return run(compact, bases, *lists_, backend=backend, ran="compact_kv", **options)


def small_chunks(backend: str) -> contextlib.AbstractContextManager[None]:
    return _launch.forced("compact_kv", SMALL) if backend == "triton" else contextlib.nullcontext()


LISTS = [
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11]],  # all in place; the last one only
    [[], [3]],
    [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 2, 4, 6, 8, 10]],  # one long overlapping run
    [[0, 1, 2, 5, 6, 9, 11], [3, 4, 5, 6, 10]],
]
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.complex64]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lists", LISTS)
def test_kept_slots_move_down(lists: list[list[int]], backend: str) -> None:
    shapes = ((2, 5), (1, 8), (1, 1), (1, 48))
    before = [
        cache(2, heads, 12, depth, dtype=dtype, seed=depth)
        for dtype, (heads, depth) in zip(DTYPES, shapes, strict=True)
    ]
    for after, old in zip(moved(before, lists, backend, width=13), before, strict=True):
        assert_moved(after, old, lists)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_unit_moves_alike(backend: str) -> None:
    """Rows of 1, 2, 4, 8 and 16 bytes and their multiples, at addresses that allow them or not."""
    lists = [[1, 2, 5, 6, 8]]
    before = [cache(1, 1, 9, d, dtype=torch.uint8, seed=d) for d in (1, 2, 4, 24, 32, 96)]
    before += [cache(1, 1, 10, 16, dtype=torch.float16, seed=9).view(-1)[1:145].view(1, 1, 9, 16)]
    with small_chunks(backend):
        results = moved(before, lists, backend)
    for after, old in zip(results, before, strict=True):
        assert_moved(after, old, lists)
        assert same_bits(after[:, :, 5:], old[:, :, 5:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_may_differ_in_shape_dtype_and_layout(backend: str) -> None:
    lists = [[2, 3, 7], [0, 5, 6, 8]]
    bases = [
        cache(2, 3, 12, 2, 5),  # keys and values side by side
        cache(2, 12, 3, 5),  # slots before heads
        cache(2, 2, 20, 7, dtype=torch.float16),
        cache(2, 1, 9, 24, dtype=torch.bfloat16),
    ]

    def view(bases: Sequence[Tensor]) -> list[Tensor]:
        pair, slots_first, long, plain = bases
        return [
            pair[..., 0, :],
            pair[..., 1, :],
            slots_first.transpose(1, 2),
            long[:, :, :9],
            plain,
        ]

    results = moved(bases, lists, backend, width=6, view=view)
    for after, old in zip(view(results), view(bases), strict=True):
        assert_moved(after, old, lists)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_around_the_views_is_touched(backend: str) -> None:
    lists = [[0, 3, 4, 10], [9], [5, 6, 7, 8, 9, 10]]
    before = cache(3, 2, 11, 6)
    banded = Banded(before)

    def view(bases: Sequence[Tensor]) -> list[Tensor]:
        return [bases[0][1:-1, 1:-1, 1:-1, 1:-1]]

    with small_chunks(backend):
        result = run(
            compact, [banded.base], *keep_of(lists), backend=backend, ran="compact_kv", view=view
        )
    banded.base = result[0]
    assert banded.intact()
    after = view(result)[0]
    assert_moved(after, before, lists)
    for b, slots in enumerate(lists):  # the tail is undefined, but a kernel that writes lost count
        assert same_bits(after[b, :, len(slots) :], before[b, :, len(slots) :])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 13, 17])
def test_chunks_and_tails(count: int, backend: str) -> None:
    """Around one, two, three and four chunks of four; the first two slots stay."""
    lists = [[0, 1, *range(4, 2 + count)], list(range(1, 1 + count))]
    before = cache(2, 1, 20, 8, dtype=torch.bfloat16)
    with small_chunks(backend):
        (after,) = moved([before], lists, backend)
    assert_moved(after, before, lists)
    for b, slots in enumerate(lists):
        assert same_bits(after[b, :, len(slots) :], before[b, :, len(slots) :])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200 if ON_GPU else 8, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=2),
    st.sampled_from([(1, torch.uint8), (3, torch.float32), (16, torch.bfloat16)]),
)
def test_any_lists(backend: str, sets: list[set[int]], row: tuple[int, torch.dtype]) -> None:
    lists = [sorted(x) for x in sets]
    before = cache(len(lists), 1, 31, row[0], dtype=row[1])
    with small_chunks(backend):
        (after,) = moved([before], lists, backend)
    assert_moved(after, before, lists)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_tensors_than_a_launch_takes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_kv, "BUCKETS", (2,))
    before = [cache(1, 1, 6, 4, seed=i) for i in range(5)]
    for after, old in zip(moved(before, [[1, 4]], backend), before, strict=True):
        assert_moved(after, old, [[1, 4]])


BAD = [
    ([2, 1], i32(2, 2), Status.KEEP),
    ([2, 2], i32(2, 2), Status.KEEP),
    ([-1, 3], i32(2, 2), Status.KEEP),
    ([-3, -2], i32(2, 2), Status.KEEP),
    ([1, 6], i32(2, 2), Status.KEEP),  # within the other tensor, not within this one
    ([1, 3], i32(-1, 2), Status.COUNTS),
    ([1, 3], i32(10, 2), Status.COUNTS),
    ([1, 3], i32(2**31 - 1, 2), Status.COUNTS),  # beyond which sums would turn negative
]


@pytest.mark.parametrize("backend", REPORTING)
@pytest.mark.parametrize(("slots", "counts", "bit"), BAD)
def test_a_bad_row_stays_and_is_reported(
    slots: list[int], counts: Tensor, bit: Status, backend: str
) -> None:
    before = [cache(2, 1, 9, 4), cache(2, 1, 6, 4, seed=1)]
    keep = torch.tensor([[*slots, *[77] * 7], [2, 5, *[77] * 7]], dtype=torch.int32)
    bases = [tensor.clone() for tensor in before]
    with small_chunks(backend):
        results = run(compact, bases, keep, counts, backend=backend, ran="compact_kv", check=False)
    assert status_word(DEVICE).item() == bit
    argument = "keep" if bit == Status.KEEP else "counts"
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        check_status(DEVICE)
    for after, old in zip(results, before, strict=True):
        assert same_bits(after[0], old[0])
        assert same_bits(after[1, :, :2], old[1, :, [2, 5]])


@pytest.mark.parametrize("backend", REPORTING)
def test_a_fault_beyond_the_first_stretch_of_the_list_is_found(backend: str) -> None:
    stretch = 8 if backend == "triton" else 512  # entries; two of these are read at once
    before = cache(1, 1, 3 * stretch + 6, 4)
    slots = [*range(1, 2 * stretch + 1), 2 * stretch, 3 * stretch + 1]
    with small_chunks(backend):
        (after,) = run(
            compact,
            [before.clone()],
            *keep_of([slots]),
            backend=backend,
            ran="compact_kv",
            check=False,
        )
    with pytest.raises(ValueError, match=r"^keep: expected"):
        check_status(DEVICE)
    assert same_bits(after, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_memory_is_refused(backend: str) -> None:
    tensor = put(cache(2, 2, 6, 4))
    keep, counts = put(list(keep_of([[1, 5], [0, 2]])))
    with pytest.raises(ValueError, match=r"^tensors: expected .* same memory at places 0 and 1"):
        compact_kv_([tensor, tensor], keep, counts, backend=backend)
    assert same_bits(tensor.cpu(), cache(2, 2, 6, 4))


def test_values_do_not_make_variants_and_lists_stay_in_registers() -> None:
    packed = by_value([0, 1, 15, 16, 2**47], 8)
    assert len(packed) == 8
    assert all(value > 1 and value % 16 for value in packed)
    for item in compact_kv.compilations(90):
        if "ROWS" in item.constexprs:
            assert item.constexprs["ROWS"] < 32 * item.options["num_warps"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_shapes(backend: str) -> None:
    for shape in ((2, 2, 0, 4), (2, 0, 6, 4), (2, 2, 6, 0), (2, 2, 6, 4)):
        before = cache(*shape)
        (after,) = moved([before], [[], []], backend, width=3)
        assert same_bits(after, before)
    before = [cache(2, 1, 6, 0), cache(2, 1, 6, 4)]
    assert_moved(moved(before, [[4], [1, 2]], backend)[1], before[1], [[4], [1, 2]])
    assert moved([cache(0, 2, 6, 4)], [], backend)[0].shape == (0, 2, 6, 4)
    run(
        compact, [cache(2, 2, 6, 4)], *keep_of([[], []], width=0), backend=backend, ran="compact_kv"
    )
    if backend in REPORTING:  # lists are checked also where nothing can move
        for depth, width in ((0, 2), (4, 0)):
            operands = torch.full((1, width), 9, dtype=torch.int32), i32(2)
            bases = [cache(1, 1, 6, depth)]
            run(compact, bases, *operands, backend=backend, ran="compact_kv", check=False)
            with pytest.raises(ValueError, match=r"^(keep|counts): expected"):
                check_status(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    keep, counts = put(list(keep_of([[1, 5], [0, 2]])))
    tensors = put([cache(2, 1, 6, 4), cache(2, 1, 7, 3)])
    check_opcheck(f"compact_kv_{backend}", tensors, keep, counts)
    check_status(DEVICE)

    def step(first: Tensor, keep: Tensor, counts: Tensor) -> Tensor:
        compact_kv_([first], keep, counts, backend=backend)
        return first[:, :, :2] + 1

    expected = cache(2, 1, 6, 4)
    compact_kv_([expected], keep.cpu(), counts.cpu(), backend="reference")
    fresh = put(cache(2, 1, 6, 4))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(fresh, keep, counts).cpu(), expected[:, :, :2] + 1)
    assert same_bits(fresh.cpu()[:, :, :2], expected[:, :, :2])
    check_compiled(step, put(cache(2, 1, 6, 4)), keep, counts)


if ON_GPU:  # what no interpreter can show: threads of one program, racing

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
    @pytest.mark.parametrize("depth", [128, 80, 5])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_long_overlaps_many_times(depth: int, dtype: torch.dtype, backend: str) -> None:
        """All slots but a few move by one or two places: every chunk overlaps its own sources."""
        length, heads = 8192, 8
        generator = torch.Generator(device=DEVICE).manual_seed(depth)
        for turn in range(20):
            skipped = torch.randperm(64, generator=generator, device=DEVICE)[: 1 + turn % 3]
            mask = torch.ones(length, dtype=torch.bool, device=DEVICE)
            mask[skipped] = False
            keep = mask.nonzero()[:, 0]
            tensors = [
                torch.randint(-99, 99, (1, heads, length, depth), device=DEVICE).to(dtype)
                for _ in range(8)
            ]
            expected = [tensor.index_select(2, keep) for tensor in tensors]
            kept = keep.to(torch.int32)[None]
            counts = torch.tensor([keep.numel()], dtype=torch.int32).to(DEVICE)
            compact_kv_(tensors, kept, counts, backend=backend)
            for after, right in zip(tensors, expected, strict=True):
                assert torch.equal(after[:, :, : keep.numel()], right)
        check_status(DEVICE)
