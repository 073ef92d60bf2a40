"""Watches what torch executes: host reads, host copies, attention calls, large masks, our own."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import erase
import erase.transfer

_READS = {
    # A Python number, bool or shape out of tensor data: each waits for the device.
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",  # unless the output size is given
}
_PYTHON_READS = {"tolist", "item", "numpy", "cpu", "__array__"}
_FROM_HOST = {"tensor", "as_tensor", "from_numpy", "asarray", "__setitem__"}
_ATTENTION = "scaled_dot_product_attention"
_PACKAGE = f"{Path(erase.__file__).parent}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_COPIES_HERE = str(Path(erase.transfer.__file__))


@dataclass(frozen=True)
class AttentionCall:
    """One call of torch's attention function."""

    queries: int
    keys: int
    mask: tuple[int, ...] | None
    is_causal: bool


class Watch(TorchDispatchMode):
    """Records while it is entered. Tensor methods that read without dispatching count too.

    Attributes:
        reads: host reads by name.
        from_host: numbers of the host that ``erase`` made into tensors, or assigned to parts of
            them, elsewhere than where it does not wait for the device; by file and line.
        attention: attention calls in order.
        square: shapes of outputs whose last two sizes are both at least ``square_from``.
        ours: private operators of ``erase_kernels`` in order.
    """

    def __init__(self, square_from: int = 10**9) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.square: list[tuple[str, tuple[int, ...]]] = []
        self.ours: list[str] = []
        self._square_from = square_from
        self._python = _PythonCalls(self.reads)
        self.from_host = self._python.from_host
        self.attention = self._python.attention

    def __enter__(self) -> Watch:
        self._python.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._python.__exit__(*exc)

    @property
    def total_reads(self) -> int:
        return sum(self.reads.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        sized = kwargs.get("output_size") is not None
        if name in _READS and not sized and not self._python.inside:
            self.reads[name] += 1
        if name == "aten::index.Tensor" and _has_bool_index(args[1]):
            self.reads["index by a bool mask"] += 1
        if name.startswith("erase_kernels::"):
            self.ours.append(name.removeprefix("erase_kernels::"))
        out = func(*args, **kwargs)
        self._note_square(name, out)
        return out

    def _note_square(self, name: str, out: Any) -> None:
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 2:
                rows, columns = tensor.shape[-2:]
                if min(rows, columns) >= self._square_from:
                    self.square.append((name, tuple(tensor.shape)))


class _PythonCalls(TorchFunctionMode):
    """What no operator shows: ``tolist`` and the like, tensors out of numbers, attention calls."""

    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads
        self.from_host: Counter[str] = Counter()
        self.attention: list[AttentionCall] = []
        self.inside = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == _ATTENTION:
            self._note_attention(*args, **kwargs)
        elif name in _FROM_HOST:
            self._note_copy(name, args)
        if name not in _PYTHON_READS:
            return func(*args, **kwargs)
        self.reads[name] += 1
        self.inside += 1  # what it does inside is the same read
        try:
            return func(*args, **kwargs)
        finally:
            self.inside -= 1

    def _note_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> None:
        shape = None if attn_mask is None else tuple(attn_mask.shape)
        lengths = (query.shape[-2], key.shape[-2])
        self.attention.append(AttentionCall(*lengths, shape, bool(is_causal)))

    def _note_copy(self, name: str, args: tuple) -> None:
        if name == "__setitem__" and isinstance(args[2], torch.Tensor):
            return
        frame = _caller()
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and path != _COPIES_HERE:
            self.from_host[f"{name} in {path}:{frame.f_lineno}"] += 1


def _caller() -> FrameType:
    """The frame outside of torch and of this file that called a function of torch."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    return frame


def _has_bool_index(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
