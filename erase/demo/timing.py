"""Stopwatches: one for repeated calls, one that rides along in a model's forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that the clock sees finished work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time of ``repeats`` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class ForwardWatch:
    """Context manager: notes what every forward of a model costs and what its cache then holds.

    Attributes:
        kv_bytes: bytes of keys and values after each forward (the first is the prefill).
        vision_seconds: time in the vision encoder, one entry per image prefill.
    """

    def __init__(self, model: Any) -> None:
        self.kv_bytes: list[int] = []
        self.vision_seconds: list[float] = []
        self._model = model
        self._device = model.device
        self._start = 0.0
        self._handles: list[Any] = []

    def __enter__(self) -> ForwardWatch:
        visual = self._model.model.visual
        self._handles = [
            visual.register_forward_pre_hook(self._begin),
            visual.register_forward_hook(self._end),
            self._model.register_forward_hook(self._note_cache),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: Any, args: Any) -> None:
        synchronize(self._device)
        self._start = time.perf_counter()

    def _end(self, module: Any, args: Any, output: Any) -> None:
        synchronize(self._device)
        self.vision_seconds.append(time.perf_counter() - self._start)

    def _note_cache(self, module: Any, args: Any, output: Any) -> None:
        layers = output.past_key_values.layers
        self.kv_bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
