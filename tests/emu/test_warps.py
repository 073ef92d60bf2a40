"""The emulator's warp operations and products against their definitions, in every order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.emu import ORDERS
from tests.emu.probe import call, order

LANES = range(32)
FULL = -1  # a mask of 32 bits as int32
PARTIAL = {"full": FULL, "low half": 0xFFFF, "odd": 0x2AAAAAAA, "few": 0x00900108, "one": 0x40}
UNTOUCHED = -77


@pytest.fixture(params=ORDERS, autouse=True)
def _orders(request: pytest.FixtureRequest) -> Iterator[None]:
    with order(request.param, 3):
        yield


def in_mask(lane: int, mask: int) -> bool:
    return bool(mask >> lane & 1)


def shuffled_from(kind: int, lane: int, distance: int, width: int) -> int:
    """The lane that CUDA's guide says a lane reads from; itself where there is none."""
    first = lane - lane % width
    if kind == 0:
        return first + distance % width
    if kind == 1:
        return lane - distance if lane - distance >= first else lane
    if kind == 2:
        return lane + distance if lane + distance < first + width else lane
    other = lane ^ distance  # reading earlier groups is allowed, later ones is not
    return other if other < first + width else lane


@pytest.mark.parametrize("kind", range(4), ids=["idx", "up", "down", "xor"])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles(kind: int, width: int) -> None:
    values = torch.randint(-(2**31), 2**31, (32,), dtype=torch.int32)
    for distance in (*range(32), *((-1, 35, 64) if kind == 0 else ())):
        found = call("shuffle", values, torch.zeros_like(values), kind, FULL, distance, width, 4)
        wanted = [values[shuffled_from(kind, lane, distance, width)] for lane in LANES]
        assert found.tolist() == [int(value) for value in wanted], distance


@pytest.mark.parametrize("mask", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.parametrize("kind", range(4), ids=["idx", "up", "down", "xor"])
def test_shuffles_of_some_lanes(kind: int, mask: int) -> None:
    """Lanes outside do nothing, and reading one of them is an error."""
    values = torch.randn(32, dtype=torch.float64)
    for distance in range(32):
        lanes = [lane for lane in LANES if in_mask(lane, mask)]
        sources = {lane: shuffled_from(kind, lane, distance, 32) for lane in lanes}
        result = torch.full((32,), float(UNTOUCHED), dtype=torch.float64)
        if not all(in_mask(source, mask) for source in sources.values()):
            with pytest.raises(RuntimeError, match="a shuffle reads a lane that is not in its"):
                call("shuffle", values, result, kind, mask, distance, 32, 8)
            continue
        found = call("shuffle", values, result, kind, mask, distance, 32, 8).tolist()
        for lane in LANES:
            wanted = float(values[sources[lane]]) if lane in sources else UNTOUCHED
            assert found[lane] == wanted, (distance, lane)


def test_every_lane_may_read_another_one() -> None:
    sources = torch.randperm(32).to(torch.int32)
    found = call("gather", sources, torch.zeros_like(sources))
    assert found.tolist() == [1000 + source for source in sources.tolist()]


@pytest.mark.parametrize("mask", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_votes(mask: int, share: float) -> None:
    votes = torch.where(torch.rand(32) < share, -5, 0).to(torch.int32)
    yes = sum(1 << lane for lane in LANES if in_mask(lane, mask) and votes[lane])
    everybody = yes == mask & 0xFFFFFFFF
    found = call("vote", votes, torch.full((32, 3), UNTOUCHED, dtype=torch.int32), mask).tolist()
    for lane in LANES:
        ballot = yes - (1 << 32) if yes >> 31 else yes
        wanted = [ballot, int(yes != 0), int(everybody)]
        assert found[lane] == (wanted if in_mask(lane, mask) else [UNTOUCHED] * 3)


@pytest.mark.parametrize("mask", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.parametrize("bytes_each", [4, 8])
def test_match(mask: int, bytes_each: int) -> None:
    dtype = torch.int32 if bytes_each == 4 else torch.int64
    values = torch.randint(-2, 3, (32,), dtype=dtype) << (0 if bytes_each == 4 else 40)
    found = call("match", values, torch.zeros(32, dtype=torch.int32), mask, bytes_each).tolist()
    for lane in LANES:
        same = [other for other in LANES if in_mask(other, mask) and values[other] == values[lane]]
        wanted = sum(1 << other for other in same) if in_mask(lane, mask) else 0
        assert found[lane] & 0xFFFFFFFF == wanted


@pytest.mark.parametrize("mask", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.parametrize("signed", [0, 1])
def test_reductions(mask: int, signed: int) -> None:
    values = torch.randint(-(2**31), 2**31, (32,), dtype=torch.int32)
    found = call("reduce", values, torch.full((32, 5), UNTOUCHED, dtype=torch.int32), mask, signed)
    taken = [value for lane, value in enumerate(values.tolist()) if in_mask(lane, mask)]
    taken = taken if signed else [value % 2**32 for value in taken]
    both, either = taken[0], taken[0]
    for value in taken:
        both, either = both & value, either | value
    wanted = [value % 2**32 for value in (sum(taken), min(taken), max(taken), either, both)]
    for lane in LANES:
        row = [value % 2**32 for value in found[lane].tolist()]
        assert row == (wanted if in_mask(lane, mask) else [UNTOUCHED % 2**32] * 5)


def test_parts_of_a_warp_work_apart_from_each_other() -> None:
    values = torch.arange(32, dtype=torch.int32)
    now = values.tolist()
    for repeat in range(4):
        held = list(now)
        for lane in LANES:
            if repeat <= lane // 8:
                now[lane] = held[lane ^ 1] + held[lane ^ 4]
    found = call("quarters", values, torch.zeros_like(values))
    assert found.tolist() == [sum(now)] * 32


def test_fragments_are_where_the_manual_says() -> None:
    tile = torch.randint(-(2**15), 2**15, (16, 16), dtype=torch.int16)
    found = call("fragments", tile, torch.zeros(32, 4, 2, dtype=torch.int16))
    for lane in LANES:
        row, pair = lane // 4, lane % 4 * 2
        for matrix, (down, right) in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
            wanted = tile[row + down, right + pair : right + pair + 2]
            assert found[lane, matrix].tolist() == wanted.tolist(), (lane, matrix)


def product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Through the emulator; a [16, 16], b [16, 8], c [16, 8]."""
    operands = torch.cat([a.flatten(), b.t().flatten()]).contiguous()
    return call("product", operands, c.clone(), int(a.dtype == torch.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    """Small integers, whose sums are exact; then one element at a time."""
    a, b = (torch.randint(-8, 9, shape).to(dtype) for shape in ((16, 16), (16, 8)))
    c = torch.randint(-100, 101, (16, 8)).float()
    assert torch.equal(product(a, b, c), c + a.float() @ b.float())
    for i in range(16):
        for k in range(16):
            a, b = torch.zeros(16, 16, dtype=dtype), torch.zeros(16, 8, dtype=dtype)
            a[i, k] = 1
            b[k] = torch.arange(1, 9)
            wanted = torch.zeros(16, 8)
            wanted[i] = torch.arange(1, 9)
            assert torch.equal(product(a, b, torch.zeros(16, 8)), wanted), (i, k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_keep_infinities_and_nan(dtype: torch.dtype) -> None:
    a, b, c = torch.ones(16, 16, dtype=dtype), torch.ones(16, 8, dtype=dtype), torch.zeros(16, 8)
    a[0, 0], a[1, 1], b[0, 7] = torch.inf, torch.nan, 0
    found = product(a, b, c)
    assert torch.equal(found[0, :7], torch.full((7,), torch.inf))
    assert found[0, 7].isnan()
    assert found[1].isnan().all()
    assert (found[2:, :7] == 16).all()
    assert (found[2:, 7] == 15).all()
