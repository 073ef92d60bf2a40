"""What a family's cells and positions are, seen while a model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tests.hf.subjects import stack_of

PIXEL_SIZES = 4
"""Argument of the private operators that read cells out of a processor's tensor."""


class Facts(TorchDispatchMode):
    """Watches a pruned prefill while it is entered.

    Attributes:
        cell: side of the cells whose entropies were taken, in pixels.
        axes: how many positions a token has.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.cell = 0
        self.axes = 0
        self._stack = stack_of(model)

    def __enter__(self) -> Facts:
        self._handle = self._stack.register_forward_pre_hook(self._see, with_kwargs=True)
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._handle.remove()

    def _see(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs["position_ids"]
        self.axes = 1 if positions.ndim == 2 else len(positions)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if "patch_entropy_from_pixels" in func._schema.name:
            cell = math.isqrt(math.prod(args[PIXEL_SIZES]))
            assert self.cell in (0, cell), "cells of several sizes"
            self.cell = cell
        return func(*args, **(kwargs or {}))
