"""A make-believe GPU: torch.cuda as far as the benchmarks use it, counting what is asked of it."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class FakeGpu:
    """Counts what the timing code asks of torch.cuda; calls run on the host meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode, self.capturing, self.captures, self.replays = "default", False, 0, 0
        self.allocated, self.peak = 1000, 5000
        gpu, stream = self, SimpleNamespace(wait_stream=lambda _: None)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert not gpu.capturing
                self.at = time.perf_counter()

            def elapsed_time(self, end: Any) -> float:
                return (end.at - self.at) * 1e3

        class Graph:
            def replay(self) -> None:
                gpu.replays += 1
                time.sleep(1e-4)

        @contextlib.contextmanager
        def graph(_: Any, stream: Any) -> Any:
            gpu.capturing, gpu.captures = True, gpu.captures + 1
            yield
            gpu.capturing = False

        def mode(value: str) -> None:
            gpu.mode = value

        def synchronize(*_: Any) -> None:
            assert not gpu.capturing

        replaced = {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "Stream": lambda _: stream,
            "current_stream": lambda _=None: stream,
            "stream": lambda _: contextlib.nullcontext(),
            "synchronize": synchronize,
            "set_sync_debug_mode": mode,
            "reset_peak_memory_stats": lambda _: None,
            "memory_allocated": lambda _: self.allocated,
            "max_memory_allocated": lambda _: self.peak,
            "is_available": lambda: True,
            "get_device_name": lambda *_: "NVIDIA MAKE-BELIEVE",
            "current_device": lambda: 0,
            "get_device_properties": lambda _: SimpleNamespace(
                L2_cache_size=1 << 12, major=9, minor=0, multi_processor_count=132
            ),
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def waiting(self, _: Any) -> None:
        assert not self.capturing
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
