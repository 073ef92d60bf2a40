"""The prefills that run now, by thread: a session is not taken away from under one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType

from torch import nn

_CALL = nn.Module._call_impl.__code__
POLL_S = 0.02


class RunningPrefills:
    """Prefills of the model ``base``; one per thread."""

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._changed = threading.Condition()
        self._by_thread: dict[int, bool] = {}  # whether it is pruned
        self._closed = False

    def start(self) -> bool:
        """Note this thread's prefill; False once ``close`` was called."""
        with self._changed:
            if not self._closed:
                self._by_thread[threading.get_ident()] = False
            return not self._closed

    def mark_pruned(self) -> None:
        """This thread's prefill went through all stages."""
        with self._changed:
            self._by_thread[threading.get_ident()] = True

    def finish(self) -> bool:
        """Forget this thread's prefill; False where it was never marked as pruned."""
        with self._changed:
            self._changed.notify_all()
            return self._by_thread.pop(threading.get_ident(), True)

    def close(self) -> bool:
        """Let no prefill start any more, and wait for those of other threads.

        Returns False where it was called before.
        """
        with self._changed:
            first, self._closed = not self._closed, True
            while first and any(map(self._runs, self._by_thread)):
                self._changed.wait(POLL_S)
            return first

    @property
    def all_pruned(self) -> bool:
        """False where a prefill of some thread was left unfinished."""
        return all(self._by_thread.values())

    def _runs(self, thread: int) -> bool:
        """Whether another thread is inside ``base``; one that was interrupted has left it."""
        if thread == threading.get_ident():
            return False
        frames = callers_of(sys._current_frames().get(thread))
        return any(is_call_of(self._base, frame) for frame in frames)


def callers_of(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame`` and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_call_of(module: nn.Module, frame: FrameType) -> bool:
    """Whether a frame is torch's call of ``module``, hooks included."""
    return frame.f_code is _CALL and frame.f_locals.get("self") is module
