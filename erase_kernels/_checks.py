"""One way to refuse an argument, so that every message has the same three parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def refuse(
    argument: str, expected: str, got: object, error: type[Exception] = ValueError
) -> NoReturn:
    """Raises ``error`` naming the argument, what was expected and what came."""
    raise error(f"{argument}: expected {expected}, got {got}")


def check(
    condition: bool, argument: str, expected: str, got: object, error: type[Exception] = ValueError
) -> None:
    """Calls `refuse` unless ``condition`` holds."""
    if not condition:
        refuse(argument, expected, got, error)


def check_tensor(value: object, argument: str) -> Tensor:
    """Returns ``value`` if it is a tensor, else raises TypeError."""
    if not isinstance(value, Tensor):
        refuse(argument, "a torch.Tensor", type(value).__name__, TypeError)
    return value


def check_int(value: object, argument: str, minimum: int) -> int:
    """Returns ``value`` if it is an int (not a bool) of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(argument, "an int", type(value).__name__, TypeError)
    check(value >= minimum, argument, f"at least {minimum}", value)
    return value


def check_vector(
    value: object,
    argument: str,
    dtype: torch.dtype,
    shape: tuple[int | None, ...] = (None,),
    device: torch.device | None = None,
    minimum: int = 0,
) -> Tensor:
    """Returns ``value`` if it is a tensor of this dtype, shape (None: any size) and device.

    ``minimum`` is the least size of the first dimension.
    """
    tensor = check_tensor(value, argument)
    if tensor.dtype != dtype:
        refuse(argument, f"dtype {dtype}", tensor.dtype, TypeError)
    actual = tensor.shape
    fits = len(actual) == len(shape)
    for size, want in zip(actual, shape, strict=False):
        fits = fits and (want is None or size == want)
    if not fits or actual[0] < minimum:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        at_least = f" with at least {minimum} entries" if minimum else ""
        refuse(argument, f"shape [{sizes}]{at_least}", tuple(actual))
    if device is not None and tensor.device != device:
        refuse(argument, f"device {device}", tensor.device)
    return tensor


def check_tensors(value: object, argument: str) -> list[Tensor]:
    """Returns ``value`` as a list if it is a sequence of at least one tensor."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        refuse(argument, "a sequence of tensors", type(value).__name__, TypeError)
    if len(value) == 0:
        refuse(argument, "at least one tensor", "an empty sequence")
    return [check_tensor(item, argument) for item in value]
