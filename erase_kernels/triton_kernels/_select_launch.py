"""What the launchers of the selection kernels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_kernels.triton_kernels import _launch

ONE = ((4096, "one_4096"), (16384, "one_16384"))  # keys of a single segment
MANY = ((2048, "many_2048"), (8192, "many_8192"))  # keys of twice the mean segment


def shape_class(keys: int, segments: int) -> str:
    """The host knows the size of a single segment; of several, their mean."""
    bound = keys if segments == 1 else min(-(-2 * keys // max(segments, 1)), keys)
    fitting = [name for most, name in (ONE if segments == 1 else MANY) if bound <= most]
    return fitting[0] if fitting else "long"


def config(kernel: str, keys: int, segments: int, device: torch.device) -> _launch.Config:
    """Settings for ``keys`` in ``segments``; all but those for one cope with any sizes."""
    return _launch.config(kernel, shape_class(keys, segments), _launch.architecture(device))


def scratch(values: Tensor, settings: _launch.Config) -> Tensor:
    """float32 room for what `select` sets aside, at the places of the segment itself.

    A segment that needs it is longer than a block, so its own places have room enough.
    """
    needed = values.shape[0] > settings.constexprs["BLOCK"]
    return values.new_empty(values.shape[0] if needed else 0)


def compilations(
    kernel: str,
    function: Any,
    pointers: Mapping[str, str],
    sizes: Sequence[str],
    architecture: int,
) -> list[_launch.Compilation]:
    """Every shape class of a kernel; tensors that may be views of something start anywhere."""
    found = []
    for shape_class in _launch.shape_classes(kernel):
        settings = _launch.config(kernel, shape_class, architecture)
        constexprs = dict(settings.constexprs)
        signature = {
            **pointers,
            **dict.fromkeys(sizes, "i32"),
            **dict.fromkeys(constexprs, "constexpr"),
        }
        found.append(
            _launch.Compilation(
                f"{kernel} {shape_class}", function, signature, constexprs, settings.options
            )
        )
    return found
