"""Where the tests of this folder run: in triton's interpreter on the CPU, or on a GPU.

The same matrix serves every backend of the device; each call proves which kernel ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_kernels import _backends, check_status
from erase_kernels.testing import record_ops
from tests import emu

NAME = os.environ.get("ERASE_KERNELS_TEST_DEVICE", "cpu")
ON_GPU = NAME == "cuda"
DEVICE = torch.device(NAME, 0) if ON_GPU else torch.device(NAME)
if not ON_GPU:
    emu.load()
BACKENDS = tuple(
    name
    for name in _backends.REASONS
    if name != "reference" and not _backends.unavailable_reason(name, DEVICE)
)
for _name in os.environ.get("ERASE_KERNELS_TEST_BACKENDS", "triton").split(","):
    if _name not in BACKENDS:
        raise RuntimeError(f"no {_name} here: {_backends.unavailable_reason(_name, DEVICE)}")
# Backends that note bad data in the status word; the native CPU kernels raise at once.
REPORTING = tuple(name for name in BACKENDS if ON_GPU or name != "native")


def put(value: Any) -> Any:
    """Tensors, also inside lists and tuples, on the device; strides stay."""
    if isinstance(value, Tensor):
        return _like(value) if ON_GPU and value.device != DEVICE else value
    if isinstance(value, list | tuple):
        return type(value)(put(item) for item in value)
    return value


def _like(value: Tensor) -> Tensor:
    # The whole storage moves, so that a view stays a view of something larger.
    base = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    moved = base.to(DEVICE)
    return moved.as_strided(value.shape, value.stride(), value.storage_offset())


def back(value: Any) -> Any:
    """Tensors, also inside lists and tuples, on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list | tuple):
        items = [back(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def run(
    function: Callable[..., Any],
    *arguments: Any,
    backend: str,
    ran: str | Sequence[str],
    check: bool = True,
    **options: Any,
) -> Any:
    """Calls a public operator on the device and brings its result back to the CPU.

    Args:
        function: public operator.
        arguments: positional; tensors are moved to the device.
        backend: one of `BACKENDS`.
        ran: private operators, without suffix, that this call must run.
        check: whether bad data that the device found is raised (the native CPU kernels raise
            by themselves).
        options: by keyword; tensors are moved too.
    """
    wanted = [
        f"erase_kernels::{name}_{backend}" for name in ([ran] if isinstance(ran, str) else ran)
    ]
    with record_ops() as names:
        result = function(
            *put(list(arguments)), backend=backend, **{k: put(v) for k, v in options.items()}
        )
    assert names == wanted, names
    if check:
        check_status(DEVICE)
    return back(result)
