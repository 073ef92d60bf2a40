"""Calls the kernels of tests/emu/probes: the emulator by itself, without torch's dispatcher."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

from torch import Tensor

from tests.emu import build

ROOT = build.ROOT

MISTAKES = (  # of probes/mistakes.cpp, in its order
    "barrier",
    "two barriers",
    "missing lane",
    "foreign mask",
    "inactive source",
    "two operations",
    "width",
    "far",
    "misaligned copy",
    "misaligned source",
    "misaligned row",
    "too much shared",
    "too much dynamic",
    "grid",
    "block",
    "behind dynamic",
    "global read",
    "static write",
    "overflow",
    "cast",
    "none",
    "plain sum",
    "plain sum of blocks",
    "lanes",
    "half a warp",
    "atomic and plain",
    "two values",
    "one value",
    "no race",
)


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.probes()))
    loaded.erase_emulator_order.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    loaded.erase_emulator_launches.restype = ctypes.c_uint64
    return loaded


@contextlib.contextmanager
def order(name: str, seed: int = 0) -> Iterator[None]:
    assert library().erase_emulator_order(name.encode(), seed) == 0
    yield
    library().erase_emulator_order(b"forward", 0)


def call(name: str, given: Tensor | None, result: Tensor, *options: int) -> Tensor:
    """Runs a probe; ``result`` is written to, and returned.

    Raises:
        RuntimeError: what the emulator threw.
    """
    function = getattr(library(), f"probe_{name}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_char_p
    assert given is None or given.is_contiguous()
    assert result.is_contiguous()
    words = (ctypes.c_int32 * max(1, len(options)))(*options)
    address = None if given is None else given.data_ptr()
    message = function(address, result.data_ptr(), words)
    if message is not None:
        raise RuntimeError(message.decode())
    return result
