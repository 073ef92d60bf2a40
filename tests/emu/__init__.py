"""The CUDA kernels on the CPU: every thread of a block emulated, on CPU tensors.

`load` compiles csrc/cuda with the C++ compiler and registers ``<operator>_emulated`` with the
schemas of ``<operator>_native``; the backend "emulated" then works like any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator

import torch

from erase_kernels import _backends, _native, _schemas

NAME = "emulated"
ORDERS = ("forward", "reverse", "shuffled")
ORDER_SWITCH = "ERASE_KERNELS_EMULATED_ORDER"  # the order to begin with, as "shuffled 3"


@functools.cache
def load() -> ctypes.CDLL:
    """Builds and loads the library; schemas and the backend's name come into being."""
    from tests.emu import build  # not above: it is a program too

    path = build.library()
    _schemas.define_all(NAME)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.erase_emulator_order.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    library.erase_emulator_launches.restype = ctypes.c_uint64
    _native.give_status_words(library)
    _backends.REASONS[NAME] = lambda device: (
        "" if device.type == "cpu" else "the emulator runs on the CPU"
    )
    _set(library, *first_order())
    return library


def _set(library: ctypes.CDLL, name: str, seed: int) -> None:
    if library.erase_emulator_order(name.encode(), seed):
        raise ValueError(f"name: expected one of {', '.join(ORDERS)}, got {name!r}")


def first_order() -> tuple[str, int]:
    """What `ORDER_SWITCH` says: name and seed."""
    name, _, seed = os.environ.get(ORDER_SWITCH, "shuffled 0").partition(" ")
    return name, int(seed or 0)


def set_order(name: str, seed: int = 0) -> None:
    """In which order threads and blocks run from now on: one of `ORDERS`."""
    _set(load(), name, seed)


@contextlib.contextmanager
def order(name: str, seed: int = 0) -> Iterator[None]:
    """`set_order` for a while; afterwards as at the beginning."""
    set_order(name, seed)
    try:
        yield
    finally:
        set_order(*first_order())


def launches() -> int:
    """Kernels launched so far."""
    return int(load().erase_emulator_launches())
