"""Scores that selection finds hard, and guard bands around what its launchers allocate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_kernels.triton_kernels import _launch
from tests.device.support import DEVICE

GUARD = 64  # elements on both sides
SENTINEL = 77
SPECIAL = torch.tensor(
    [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 1.0, -1.0]
)


def _third_zero(size: int) -> Tensor:
    return torch.where(torch.rand(size) < 0.34, 0.0, torch.randn(size).mul(3).exp())


def _any_bits(size: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, (size,)).to(torch.int32).view(torch.float32)


SCORES: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "a third of them zero": _third_zero,
    "half of them zero, in the middle": lambda n: torch.randn(n) * (torch.rand(n) < 0.5),
    "few values": lambda n: torch.randint(3, (n,)).float(),
    "all equal": lambda n: torch.full((n,), 0.25),
    "special": lambda n: SPECIAL[torch.randint(12, (n,))],
    "any bits": _any_bits,
    # Doubling gaps between keys: pivots that split the range by halves find one key at a time.
    "doubling": lambda n: torch.pow(2, torch.rand(n) * 30).to(torch.int32).view(torch.float32),
    "the sample sees nothing": lambda n: (torch.arange(n) % 16 != 0) * torch.rand(n),
}


def small_blocks(kernel: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes a kernel take blocks of 16 keys and tiles of two rows of 32."""
    settings = {"num_warps": 1, "BLOCK": 16, "ROW": 32, "TILE": 64, "SAMPLE": 16, "ONE": 0}
    return lambda: _launch.forced(kernel, settings)


def one_block(kernel: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes a kernel take one segment of at most 128 keys, four in a thread."""
    settings = {"num_warps": 1, "BLOCK": 128, "ROW": 32, "TILE": 64, "SAMPLE": 32, "ONE": 1}
    return lambda: _launch.forced(kernel, settings)


@contextlib.contextmanager
def guarded() -> Iterator[Callable[[], list[Tensor]]]:
    """All that a launcher's `new_empty` makes, in Python or C++, lies between guards.

    The function checks them.
    """
    bases: list[Tensor] = []

    def new_empty(self: Tensor, size: Sequence[int], **options: Any) -> Tensor:
        dtype = options.get("dtype") or self.dtype
        if options.get("device") is not None:  # not ours: triton's interpreter
            return torch.empty(size, dtype=dtype, device=options["device"])
        shape = (size[0] + 2 * GUARD,)
        bases.append(torch.full(shape, SENTINEL, dtype=dtype, device=self.device))
        return bases[-1][GUARD : GUARD + size[0]]

    def intact() -> list[Tensor]:
        for base in bases:
            assert (base[:GUARD] == SENTINEL).all()
            assert (base[-GUARD:] == SENTINEL).all()
        return bases

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("new_empty", new_empty, DEVICE.type.upper())
        yield intact
