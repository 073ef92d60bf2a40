"""One way to refuse an argument, so that every message has the same three parts."""

from __future__ import annotations

from typing import NoReturn

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
