"""Numbers that a kernel takes by value inside a tuple.

Triton compiles a variant of its own wherever a member of a tuple is 1 (it then is a constant, not a
tensor) or a multiple of 16, whatever ``do_not_specialize`` says. Odd numbers above 1 are neither,
so tuples hold ``2 n + 3`` for every ``n >= 0``, and kernels take it back.
"""

from __future__ import annotations

from collections.abc import Iterable

import triton
import triton.language as tl


def odd(numbers: Iterable[int]) -> tuple[int, ...]:
    """Members of a kernel's tuple argument."""
    return tuple(2 * number + 3 for number in numbers)


@triton.jit
def plain(number):
    """The number that `odd` hid, int64."""
    return (number.to(tl.int64) - 3) >> 1
