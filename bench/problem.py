"""An operator on one shape, on a device: its operands, ours, its peers, and what is right.

Every function takes its operands as one argument, so that a measurement can go through copies of
them. Ours is held to the operator's contract against the reference (the same bits, for scores the
error budget); peers only roughly, since fused or half-precision arithmetic may move a gray level
or a logit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

EAGER, COMPILED = "eager attention", "compiled"

Run = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything about one row.

    Attributes:
        make: number of a copy -> operands.
        ours: backend, operands -> result.
        peers: name -> function of the operands.
        verify: raises AssertionError unless a function gives the right result; True holds it to
            the operator's contract, False to what is asked of peers.
        compiled: what torch.compile gets, a function of tensors; None for nothing.
        bytes_moved: least traffic, read plus written.
        operations: multiply and add counted singly.
        touched: bytes of one copy that a call reads or writes.
        heavy: peers whose temporaries a graph should not keep.
    """

    make: Callable[[int], Any]
    ours: Callable[[str, Any], Any]
    peers: dict[str, Run]
    verify: Callable[[Run, bool], None]
    compiled: Run | None
    bytes_moved: int
    operations: int = 0
    touched: int = 0
    heavy: tuple[str, ...] = ()
