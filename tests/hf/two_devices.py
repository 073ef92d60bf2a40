"""A second device without a second device: tensors that say they are there, and do not mix.

Inside ``TwoDevices()`` a tensor is on the CPU or on ``OTHER``. It says so by ``.device``, ``to``
and factories take it there, results are where their inputs are, and a function of tensors on
both raises as torch does. All numbers are still computed by the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = torch.device("cpu")
OTHER = torch.device("cpu", 1)
"""Another device to everything that compares devices, and one that operators run on."""
_DEVICE_GETTER = torch.Tensor.device.__get__
_MOVES = {"to", "cpu", "copy_"}  # may have inputs on both


def device_of(tensor: torch.Tensor) -> torch.device:
    """Where a tensor says it is."""
    return getattr(tensor, "_said_device", HERE)


def place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Make a tensor say that it is on ``device``."""
    tensor._said_device = device
    return tensor


class TwoDevices(TorchFunctionMode):
    """Attributes: ``seen``: functions that ran on tensors of ``OTHER``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE_GETTER:
            return device_of(args[0])
        name = getattr(func, "__name__", str(func))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        target = self._target(name, args, kwargs, tensors)
        if target == OTHER:
            self.seen.add(name)
        out = func(*args, **kwargs)
        if name == "copy_":
            return out
        for result in tree_leaves(out):
            if isinstance(result, torch.Tensor) and device_of(result) != target:
                if any(result is t for t in tensors):  # to() of the CPU gives the same tensor
                    return place(result.clone(), target)
                place(result, target)
        return out

    def _target(self, name: str, args: tuple, kwargs: dict, tensors: list) -> torch.device:
        named = [kwargs["device"]] if kwargs.get("device") is not None else []
        asked = [d for d in (*named, *tree_leaves(args)) if isinstance(d, (torch.device, str))]
        if asked and (named or name in _MOVES or isinstance(asked[0], torch.device)):
            return torch.device(asked[0])
        if name == "cpu":
            return HERE
        if name == "to" and len(tensors) == 2:
            return device_of(tensors[1])
        # A single number may come from the CPU, as in torch.
        at = {device_of(t) for t in tensors if t.ndim} or {device_of(t) for t in tensors}
        if len(at) > 1 and name not in _MOVES:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {at}")
        return device_of(tensors[0]) if len(at) > 1 else next(iter(at), HERE)


@contextlib.contextmanager
def spread(placement: dict[torch.nn.Module, torch.device]) -> Iterator[None]:
    """Put modules on devices as accelerate does, and take them back.

    Accelerate replaces a module's ``forward`` by one that brings its inputs to it, so torch's hooks
    see them where they were before.
    """
    for module, device in placement.items():
        for tensor in (*module.parameters(), *module.buffers()):
            place(tensor, device)
        module.forward = _bringing(module.forward, device)
    yield
    for module in placement:
        del module.forward
        for tensor in (*module.parameters(), *module.buffers()):
            del tensor._said_device


def _bringing(forward: Any, device: torch.device) -> Any:
    def bring(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and device_of(value) != device:
            return value.to(device)
        return value

    def placed_forward(*args: Any, **kwargs: Any) -> Any:
        return forward(*tree_map(bring, args), **tree_map(bring, kwargs))

    return placed_forward
