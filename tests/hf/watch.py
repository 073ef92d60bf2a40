"""Watches what torch executes: host reads, attention calls, large masks, native operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
_FLASH_FOR_CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class AttentionCall:
    """One fused attention call of the text model."""

    queries: int
    keys: int
    mask: tuple[int, ...] | None
    is_causal: bool


class Watch(TorchDispatchMode):
    """Records while it is entered. Tensor methods that read without dispatching count too.

    Attributes:
        reads: host reads by name.
        attention: fused attention calls in order.
        square: shapes of outputs whose last two sizes are both at least ``square_from``.
        native: native operators of ``erase_kernels`` in order.
    """

    def __init__(self, square_from: int = 10**9) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.attention: list[AttentionCall] = []
        self.square: list[tuple[str, tuple[int, ...]]] = []
        self.native: list[str] = []
        self._square_from = square_from
        self._python = _PythonReads(self.reads)

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
            self.native.append(name.removeprefix("erase_kernels::"))
        if name == _FLASH_FOR_CPU:
            self._note_attention(args, kwargs)
        out = func(*args, **kwargs)
        self._note_square(name, out)
        return out

    def _note_attention(self, args: tuple, kwargs: dict) -> None:
        mask = kwargs.get("attn_mask")
        causal = args[4] if len(args) > 4 else kwargs.get("is_causal", False)
        shape = None if mask is None else tuple(mask.shape)
        call = AttentionCall(args[0].shape[-2], args[1].shape[-2], shape, bool(causal))
        self.attention.append(call)

    def _note_square(self, name: str, out: Any) -> None:
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 2:
                rows, columns = tensor.shape[-2:]
                if min(rows, columns) >= self._square_from:
                    self.square.append((name, tuple(tensor.shape)))


class _PythonReads(TorchFunctionMode):
    """Counts ``tolist``, ``numpy`` and the like, which on the CPU read without any operator."""

    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads
        self.inside = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _PYTHON_READS:
            return func(*args, **kwargs)
        self.reads[name] += 1
        self.inside += 1  # what it does inside is the same read
        try:
            return func(*args, **kwargs)
        finally:
            self.inside -= 1


def _has_bool_index(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
