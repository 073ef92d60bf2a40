"""Installs the hooks that prune a model, and always takes them away again."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from erase.hf import cache as kv
from erase.hf.architecture import inspect_model
from erase.hf.attention import shadow, unshadow
from erase.hf.current import assisted_generation, current_prefill, set_current_prefill
from erase.hf.decoding import continue_decoding
from erase.hf.deepstack import PROCESS, with_kept_planes
from erase.hf.families import Statistics
from erase.hf.hook_points import check_hook_points
from erase.hf.pixels import statistics_for
from erase.hf.prefill import Prefill
from erase.hf.prompt import Prompt, brought
from erase.hf.recurrent import rowwise
from erase.hf.refusals import (
    PAST_HOOKS,
    UNFINISHED,
    check_generate,
    check_hooks_ran,
    check_images_have_pixels,
    check_method,
    check_outer_generate,
    check_router_logits,
    check_videos,
    complain,
    refuse_continuous_batching,
)
from erase.hf.reporting import note_first_decode
from erase.hf.resolution import check_resolution
from erase.hf.running import RunningPrefills
from erase.hf.signals import Modality, with_image_entropies, with_video_entropies
from erase.hf.wrappers import hide_attribute
from erase.methods import Method
from erase.report import PrefillReport

_installed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_install_lock = threading.Lock()


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
            Otherwise videos pass through.
        keep_reports: how many reports ``session.reports`` keeps.

    Raises:
        TypeError, ValueError: unsupported model, method or processor, a layer the model does not
            have, a model that already has an open session. Nothing has been changed then.
        RuntimeError: the installed transformers lacks something that hooks need; names both.

    Warns:
        ResolutionWarning: the processor resizes images unlike what the method's preset assumes.
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"method: expected a pruning method such as EraseConfig, got {type(method).__name__}"
        )
    if isinstance(keep_reports, bool) or not isinstance(keep_reports, int) or keep_reports < 1:
        raise ValueError(f"keep_reports: expected a positive int, got {keep_reports!r}")
    check_resolution(method, processor)
    return Session(model, method, processor, videos, keep_reports)


class Session:
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
        self._counting = threading.Lock()
        self._running = RunningPrefills(self.architecture.base)
        self._methods: list[tuple[object, Method]] = [(self, method)]
        self._undo = contextlib.ExitStack()
        base = self.architecture.base
        self._signature = inspect.signature(type(base).forward)
        with _install_lock:
            if base in _installed:
                raise ValueError("model: it already has an open pruning session; remove it first")
            with self._undo:
                self._install(statistics)
                self._undo = self._undo.pop_all()
            _installed.add(base)

    # -- installing and removing -----------------------------------------------------------------

    def _install(self, statistics: Mapping[Modality, Statistics]) -> None:
        architecture = self.architecture
        base, stack = architecture.base, architecture.language_model
        name = architecture.text_config._attn_implementation
        shadow(name)
        # Also when the model is dropped with its session open.
        self._undo.callback(weakref.finalize(base, unshadow, name))
        self._wrap_encoders(statistics)
        for module in architecture.recurrent:
            self._set(module, "forward", rowwise(module))
        if hasattr(stack, PROCESS):
            process = with_kept_planes(getattr(stack, PROCESS), self._current)
            self._set(stack, PROCESS, process)
        if hasattr(architecture.model, "generate"):
            self._set(architecture.model, "generate", self._checked(architecture.model.generate))
            self._set(architecture.model, "init_continuous_batching", refuse_continuous_batching)
        before = {base: self._open, stack: self._enter, stack.norm: self._before_norm}
        before |= {
            layer: partial(self._before_layer, index)
            for index, layer in enumerate(architecture.layers)
        }
        for module, hook in before.items():
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._undo.callback(handle.remove)
            if module is base:
                self._opener = handle.id
        handle = base.register_forward_hook(self._close, with_kwargs=True, always_call=True)
        self._undo.callback(handle.remove)
        self._undo.callback(stack.register_forward_hook(self._leave, with_kwargs=True).remove)

    def _wrap_encoders(self, statistics: Mapping[Modality, Statistics]) -> None:
        base, family = self.architecture.base, self.architecture.family
        encode = with_image_entropies(base.get_image_features, base, family, statistics["image"])
        self._set(base, "get_image_features", encode)
        if hasattr(base, "get_video_features"):
            encode = with_video_entropies(
                base.get_video_features, base, family, statistics.get("video")
            )
            self._set(base, "get_video_features", encode)

    def _set(self, module: Any, name: str, value: Any) -> None:
        """An instance attribute that hides the class's until the session is removed."""
        self._undo.callback(hide_attribute(module, name, value))

    def _checked(self, generate: Any) -> Any:
        signature = inspect.signature(generate)

        @functools.wraps(generate)
        def checked_generate(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind_partial(*args, **kwargs).arguments
            options = {**call, **call.pop("kwargs", {})}
            with assisted_generation(check_generate(self.architecture.model, options, self.videos)):
                return generate(*args, **kwargs)

        return checked_generate

    def remove(self) -> None:
        """Take every hook away; the model is then exactly as before. Safe to call twice.

        Prefills that other threads are in are waited for, and none is pruned from now on.
        """
        if not self._running.close():
            return
        self.closed = True
        finished = self._current() is None or self._end()
        with _install_lock:
            self._undo.close()
            _installed.discard(self.architecture.base)
        if not (finished and self._running.all_pruned) and sys.exc_info()[0] is None:
            complain(UNFINISHED)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Hooks belong to one model, so neither the session nor a hooked model can be copied."""
        raise TypeError(
            "model: it has an open pruning session; remove the session before the model is "
            "copied or pickled"
        )

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
        its text) sees it. Blocks may end in any order.
        """
        changed = self.method.replace(**fields)
        changed.validate(self.architecture.facts)
        entry = (object(), changed)
        self._methods.append(entry)
        try:
            yield self
        finally:
            self._methods.remove(entry)

    # -- hooks -----------------------------------------------------------------------------------

    # Where kwargs or an output are missing, another thread is just adding or removing the hook.

    def _open(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        """Vision-language model, before: is this a prefill with new images?"""
        if kwargs is None:
            return
        if self._current() is not None:  # left by an interrupt, after which torch runs no hook
            self._end()
            complain(UNFINISHED)
        call = self._signature.bind(module, *args, **kwargs).arguments
        encoded = brought(call, self.videos)
        if not encoded:
            check_images_have_pixels(self.architecture, call, self.videos)
            return
        check_router_logits(call)
        prompt = Prompt(call.get("input_ids"), call.get("inputs_embeds"))
        prefill = Prefill(self, self.method, prompt, tuple(encoded))
        if not self._running.start():
            return
        with self._counting:
            self.prefills_seen += 1
        set_current_prefill(prefill)
        for modality, output in encoded.items():
            if output is not None:
                prefill.receive(output, modality)

    def _close(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        """Vision-language model, after, also after an exception: then there is no output."""
        if self._current() is not None and not self._end() and output is not None:
            complain(PAST_HOOKS)

    def _end(self) -> bool:
        """This thread's prefill is over; False where it was not pruned."""
        set_current_prefill(None)
        return self._running.finish()

    def _current(self) -> Prefill | None:
        prefill = current_prefill()
        return prefill if prefill is not None and prefill.session is self else None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        if kwargs is None:
            return None
        prefill = self._current()
        base = self.architecture.base
        if prefill is not None and base is not self.architecture.model:
            return args, prefill.enter(kwargs)
        if prefill is not None:  # generate() belongs to a model around it
            with assisted_generation(check_outer_generate(base, self.videos)):
                return args, prefill.enter(kwargs)
        if not self.closed and kwargs["inputs_embeds"].shape[1] > 1:
            check_hooks_ran(base, self._opener in base._forward_pre_hooks)
        state = kv.state_of(kwargs.get("past_key_values"))
        if state is None:
            return None
        return args, continue_decoding(self.architecture.text_config, state, kwargs)

    def _before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        prefill = self._current()
        if prefill is None or kwargs is None:
            return None
        if not hasattr(prefill, "plan"):
            raise RuntimeError(f"stage 1: {PAST_HOOKS}")
        return prefill.before_layer(index, args, kwargs)

    def _before_norm(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        prefill = self._current()
        if prefill is None or kwargs is None:
            return None
        return prefill.before_norm(args), kwargs

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        if output is None:
            return None
        prefill = self._current()
        if prefill is not None:
            return prefill.leave(output)
        state = kv.state_of(kwargs.get("past_key_values"))
        if state is not None:
            note_first_decode(state.report(), kwargs["past_key_values"])
        return None

    def file(self, report: PrefillReport) -> None:
        """Count a pruned prefill and keep its report."""
        self._running.mark_pruned()
        with self._counting:
            self.prefills_pruned += 1
            self.reports.append(report)
