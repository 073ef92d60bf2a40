"""The prefill that the running thread is in, if any: concurrent forwards do not mix."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill


class _Current(threading.local):
    prefill: Prefill | None = None
    prompt_tokens: int | None = None


_current = _Current()


def current_prefill() -> Prefill | None:
    """The open prefill of this thread."""
    return _current.prefill


def set_current_prefill(prefill: Prefill | None) -> None:
    """Open or close the prefill of this thread."""
    _current.prefill = prefill


def drafted_tokens(fed: int) -> int:
    """How many of the ``fed`` tokens are drafts of assisted generation, which may be rejected."""
    prompt = _current.prompt_tokens
    return 0 if prompt is None else max(0, fed - prompt)


def assisted() -> bool:
    """Whether this thread is in an assisted generate()."""
    return _current.prompt_tokens is not None


@contextlib.contextmanager
def assisted_generation(prompt_tokens: int | None) -> Iterator[None]:
    """Remember the prompt's length while an assisted generate() runs; None: not assisted."""
    before, _current.prompt_tokens = _current.prompt_tokens, prompt_tokens
    try:
        yield
    finally:
        _current.prompt_tokens = before
