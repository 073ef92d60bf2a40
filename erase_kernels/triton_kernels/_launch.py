"""What every launcher needs: the device's architecture, a device guard, committed configurations.

Configurations are data (``configs/<kernel>.json``: shape class -> architecture -> settings), chosen
by measurement beforehand; nothing is tuned while a model runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import triton

CONFIGS = Path(__file__).resolve().parent / "configs"
ARCHITECTURES = (80, 90, 100, 120)  # compute capabilities with configurations of their own
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETER_ARCHITECTURE = 90  # whose configurations the interpreter uses
WARP = 32  # threads
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # settings for the compiler; others are constexprs


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of one kernel for one shape class on one architecture."""

    constexprs: Mapping[str, int]
    options: Mapping[str, int]

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {**self.constexprs, **self.options}


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One way in which a kernel is compiled.

    Attributes:
        name: kernel, shape class and data types.
        kernel: the ``triton.jit`` function.
        signature: argument -> type ("*fp32", "i32", "constexpr", a tuple of them).
        constexprs: argument -> value.
        options: of the compiler.
        unaligned: pointer arguments that need not start at a multiple of 16 bytes.
        luma: whether float32 multiply-adds must stay unfused in all of it.
    """

    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    options: Mapping[str, Any]
    unaligned: tuple[str, ...] = ()
    luma: bool = False


@functools.cache
def _load(kernel: str) -> dict[str, dict[int, Config]]:
    classes = json.loads((CONFIGS / f"{kernel}.json").read_text())
    return {
        shape_class: {int(arch): _parse(settings) for arch, settings in by_arch.items()}
        for shape_class, by_arch in classes.items()
    }


def _parse(settings: Mapping[str, int]) -> Config:
    constexprs = {name: value for name, value in settings.items() if name not in OPTIONS}
    options = {name: value for name, value in settings.items() if name in OPTIONS}
    return Config(constexprs, options)


_forced: dict[str, Config] = {}


@contextlib.contextmanager
def forced(kernel: str, settings: Mapping[str, int]) -> Iterator[None]:
    """Makes every launch of ``kernel`` use ``settings``: for tuning and tests only."""
    _forced[kernel] = _parse(settings)
    try:
        yield
    finally:
        del _forced[kernel]


def config(kernel: str, shape_class: str, architecture: int) -> Config:
    """Committed settings; of the newest listed architecture that is not newer than the device's."""
    return _forced.get(kernel) or _committed(kernel, shape_class, architecture)


@functools.cache
def _committed(kernel: str, shape_class: str, architecture: int) -> Config:
    known = _load(kernel)[shape_class]
    fitting = [listed for listed in known if listed <= architecture]
    return known[max(fitting) if fitting else min(known)]


def shape_classes(kernel: str) -> tuple[str, ...]:
    """Shape classes of a kernel, as listed."""
    return tuple(_load(kernel))


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0."""
    if device.type != "cuda":
        return INTERPRETER_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one, so that launches go to its current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


cdiv = triton.cdiv
next_power_of_2 = triton.next_power_of_2
