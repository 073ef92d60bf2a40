"""Installs the hooks that prune a model, and always takes them away again."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from erase.hf.architecture import inspect_model
from erase.hf.families import Statistics
from erase.hf.hook_points import check_hook_points
from erase.hf.hooks import ModelHooks
from erase.hf.pixels import statistics_for
from erase.hf.prefill_hooks import BoundToModel
from erase.hf.refusals import (
    UNFINISHED,
    check_is_method,
    check_method,
    check_videos,
    complain,
)
from erase.hf.resolution import check_resolution
from erase.hf.signals import Modality
from erase.methods import Method
from erase.report import PrefillReport

_installed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_install_lock = threading.Lock()
_numbers = itertools.count()


def prune(
    model: Any,
    method: Method,
    processor: Any | None = None,
    *,
    videos: bool = False,
    keep_reports: int = 16,
) -> Session:
    """Prune visual tokens in a stock transformers model, until the session is removed.

    Use it as a context manager, or call ``.remove()``. Weights, classes and files stay as they
    are: hooks go onto this instance, and one entry of transformers' attention registry is shadowed
    under its own name while sessions are open.

    Args:
        model: a supported vision-language model (``erase.hf.supported_model_types()``).
        method: what to prune, e.g. ``EraseConfig.for_model(model, keep_ratio=0.15)``.
        processor: the processor that makes ``pixel_values``; its normalisation is undone to get
            the exact pixels back, for videos that of its ``video_processor``. None: the family's
            usual statistics.
        videos: also prune videos, in the families that support it: a cell's entropy is that of
            its pixels in all frames of its temporal slice, and a video is planned like one image.
            Otherwise videos pass through, except frames that a processor hands over as images.
        keep_reports: how many reports ``session.reports`` keeps.

    Raises:
        TypeError, ValueError: unsupported model, method or processor, a layer the model does not
            have, a model that already has an open session. Nothing has been changed then.
        RuntimeError: the installed transformers lacks something that hooks need; names both.

    Warns:
        ResolutionWarning: the processor resizes images unlike what the method's preset assumes.
    """
    check_is_method(method)
    if isinstance(keep_reports, bool) or not isinstance(keep_reports, int) or keep_reports < 1:
        raise ValueError(f"keep_reports: expected a positive int, got {keep_reports!r}")
    check_resolution(method, processor)
    return Session(model, method, processor, videos, keep_reports)


class Session(BoundToModel):
    """An open pruning session; made by ``prune``.

    Attributes:
        reports: the last prefills, oldest first. ``report``: the last one, None before any.
        prefills_seen, prefills_pruned: prefills that brought new images, and those of them that
            went through the method's stages. They differ only where an exception was raised.
        videos: whether videos are pruned.
        closed: True after ``remove()``.
    """

    def __init__(
        self, model: Any, method: Method, processor: Any, videos: bool, keep_reports: int
    ) -> None:
        self.architecture = inspect_model(model)
        check_hook_points(self.architecture)
        check_videos(self.architecture.family, videos)
        self.videos = videos
        method.validate(self.architecture.facts)
        check_method(self.architecture.family, method)
        statistics: dict[Modality, Statistics] = {
            "image": statistics_for(self.architecture, processor)
        }
        if videos:
            statistics["video"] = statistics_for(self.architecture, processor, "video_processor")
        self.reports: deque[PrefillReport] = deque(maxlen=keep_reports)
        self.prefills_seen = 0
        self.prefills_pruned = 0
        self.devices: set[torch.device] = set()  # where layers were scored
        self.closed = False
        self.number = next(_numbers)  # tells what was encoded in this session
        self._counting = threading.Lock()
        self._methods: list[tuple[object, Method]] = [(self, method)]
        self._hooks = ModelHooks(self)
        base = self.architecture.base
        with _install_lock:
            if base in _installed:
                raise ValueError("model: it already has an open pruning session; remove it first")
            self._hooks.install(statistics)
            _installed.add(base)

    def remove(self) -> None:
        """Take every hook away; the model is then exactly as before. Safe to call twice.

        Prefills that other threads are in are waited for, and none is pruned from now on.
        """
        if not self._hooks.stop():
            return
        self.closed = True
        with _install_lock:
            finished = self._hooks.remove()
            _installed.discard(self.architecture.base)
        if not finished and sys.exc_info()[0] is None:
            complain(UNFINISHED)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # -- for the user ----------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The method in use, overrides included."""
        return self._methods[-1][1]

    @property
    def report(self) -> PrefillReport | None:
        """What the last prefill did, None before the first."""
        return self.reports[-1] if self.reports else None

    @contextlib.contextmanager
    def override(self, **fields: Any) -> Iterator[Session]:
        """Change fields of the method for the requests that start inside the ``with`` block.

        It holds for every thread, so that a generate() started in a thread of its own (to stream
        its text) sees it. Blocks may end in any order. A request whose images are encoded already
        when the block starts is pruned with the changed fields too, unless they need pixel signals
        that were not measured then (``stage1_score="edges"``): it goes on with those before.
        """
        changed = self.method.replace(**fields)
        changed.validate(self.architecture.facts)
        entry = (object(), changed)
        self._methods.append(entry)
        try:
            yield self
        finally:
            self._methods.remove(entry)

    # -- for the hooks ---------------------------------------------------------------------------

    def count_seen(self) -> None:
        """Count a prefill that brought something to prune."""
        with self._counting:
            self.prefills_seen += 1

    def file(self, report: PrefillReport) -> None:
        """Count a pruned prefill and keep its report."""
        with self._counting:
            self.prefills_pruned += 1
            self.reports.append(report)
