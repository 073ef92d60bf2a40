"""The prefill that the running thread is in, if any: concurrent forwards do not mix."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill


class _Current(threading.local):
    prefill: Prefill | None = None


_current = _Current()


def current_prefill() -> Prefill | None:
    """The open prefill of this thread."""
    return _current.prefill


def set_current_prefill(prefill: Prefill | None) -> None:
    """Open or close the prefill of this thread."""
    _current.prefill = prefill
