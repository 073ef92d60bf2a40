"""What the compaction kernels share: numbers passed by value, and the units in which bytes move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import triton
import triton.language as tl

from erase_kernels.triton_kernels._odd import odd, plain

WIDEST_UNIT = 16  # bytes a thread moves at once
ELEMENTS = {16: tl.int64, 8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}  # unit -> moved as


def unit_of(sizes: Iterable[int]) -> int:
    """Widest unit, in bytes, that divides every size, stride and address."""
    combined = WIDEST_UNIT
    for size in sizes:
        combined |= size
    return combined & -combined


def element_bytes(unit: int) -> int:
    """Bytes of an element that ``unit`` is moved as: a unit of 16 is a pair of elements."""
    return min(unit, 8)


def by_value(values: Sequence[int], width: int) -> tuple[int, ...]:
    """Numbers for a kernel's tuple argument, filled up to ``width``; `pick` reads them."""
    return odd([*values, *[values[-1]] * (width - len(values))])


@triton.jit
def pick(packed, i, N: tl.constexpr):
    """Value ``i`` of a tuple packed by `by_value`, int64; in two steps: fewer selects wait."""
    GROUP: tl.constexpr = min(N, 8)
    value = packed[0].to(tl.int64)
    for g in tl.static_range(0, N, GROUP):
        member = packed[g].to(tl.int64)
        for n in tl.static_range(1, GROUP):
            member = tl.where(i % GROUP == n, packed[g + n].to(tl.int64), member)
        value = tl.where(i // GROUP == g // GROUP, member, value)
    return plain(value)
