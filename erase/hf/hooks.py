"""What runs on the modules of one model while its session is open."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erase.hf import cache as kv
from erase.hf.attention import shadow, unshadow
from erase.hf.current import assisted_generation, current_prefill, set_current_prefill
from erase.hf.decoding import continue_decoding
from erase.hf.deepstack import PROCESS, with_kept_planes
from erase.hf.families import Statistics
from erase.hf.prefill import Prefill
from erase.hf.prefill_hooks import (
    AroundModel,
    BoundToModel,
    PrefillHooks,
    named,
    never_compiled,
    parameters_of,
    tokens_in,
)
from erase.hf.prompt import Prompt, brought
from erase.hf.recurrent import rowwise
from erase.hf.refusals import (
    PAST_HOOKS,
    UNFINISHED,
    check_generate,
    check_hooks_ran,
    check_images_have_pixels,
    check_outer_generate,
    check_router_logits,
    complain,
    refuse_continuous_batching,
)
from erase.hf.reporting import note_first_decode
from erase.hf.running import RunningPrefills
from erase.hf.signals import (
    InUse,
    Modality,
    method_for,
    with_image_entropies,
    with_video_entropies,
)
from erase.hf.wrappers import hide_attribute

if TYPE_CHECKING:
    from erase.hf.session import Session


class ModelHooks(BoundToModel):
    """Hooks and wrapped methods of one model; made by its session.

    Where a hook gets no ``kwargs`` or no output, another thread is just adding or removing it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._architecture = session.architecture
        self._running = RunningPrefills(self._architecture.base)
        self._parameters = parameters_of(self._architecture.base)
        stack = self._architecture.language_model
        self._inside = PrefillHooks([*self._architecture.layers, stack.norm], self._before_layer)
        self._undo = contextlib.ExitStack()

    # -- installing and removing -----------------------------------------------------------------

    def install(self, statistics: Mapping[Modality, Statistics]) -> None:
        """Put everything in place, or nothing where that raises."""
        with self._undo:
            self._install(statistics)
            self._undo = self._undo.pop_all()

    def stop(self) -> bool:
        """Let no prefill start any more, and wait for those of other threads; False if stopped."""
        return self._running.close()

    def remove(self) -> bool:
        """Take everything away; False where a prefill was left unfinished."""
        finished = self._current() is None or self._end()
        self._undo.close()
        return finished and self._running.all_pruned

    def _install(self, statistics: Mapping[Modality, Statistics]) -> None:
        architecture = self._architecture
        base, stack, model = architecture.base, architecture.language_model, architecture.model
        name = architecture.text_config._attn_implementation
        shadow(name)
        # Also when the model is dropped with its session open.
        self._undo.callback(weakref.finalize(base, unshadow, name))
        self._wrap_encoders(statistics)
        for module in architecture.recurrent:
            self._set(module, "forward", rowwise(module))
        if hasattr(stack, PROCESS):
            self._set(stack, PROCESS, with_kept_planes(getattr(stack, PROCESS), self._current))
        if hasattr(model, "generate"):
            self._set(model, "generate", self._checked(model.generate))
            self._set(model, "init_continuous_batching", refuse_continuous_batching)
        self._undo.callback(self._inside.close)
        if model is not base:
            self._undo.callback(AroundModel(model).remove)
        opener = base.register_forward_pre_hook(self._open, with_kwargs=True)
        self._opener = opener.id
        self._undo.callback(opener.remove)
        handle = stack.register_forward_pre_hook(self._enter, with_kwargs=True)
        self._undo.callback(handle.remove)
        handle = base.register_forward_hook(self._close, with_kwargs=True, always_call=True)
        self._undo.callback(handle.remove)
        self._undo.callback(stack.register_forward_hook(self._leave, with_kwargs=True).remove)

    def _wrap_encoders(self, statistics: Mapping[Modality, Statistics]) -> None:
        base, family = self._architecture.base, self._architecture.family
        encode = with_image_entropies(
            base.get_image_features, base, family, statistics["image"], self._in_use
        )
        self._set(base, "get_image_features", encode)
        if hasattr(base, "get_video_features"):
            encode = with_video_entropies(
                base.get_video_features, base, family, statistics.get("video"), self._in_use
            )
            self._set(base, "get_video_features", encode)

    def _in_use(self) -> InUse:
        """The method of the open prefill, else the one that would be used now."""
        prefill = self._current()
        method = (self._session if prefill is None else prefill).method
        return InUse(self._session.number, method)

    def _set(self, module: Any, name: str, value: Any) -> None:
        """An instance attribute that hides the class's until the session is removed."""
        self._undo.callback(hide_attribute(module, name, value))

    def _checked(self, generate: Any) -> Any:
        signature = inspect.signature(generate)
        model, videos = self._architecture.model, self._session.videos

        @functools.wraps(generate)
        def checked_generate(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind_partial(*args, **kwargs).arguments
            options = {**call, **call.pop("kwargs", {})}
            with assisted_generation(check_generate(model, options, videos)):
                return generate(*args, **kwargs)

        return checked_generate

    # -- hooks -----------------------------------------------------------------------------------

    def _open(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        """Vision-language model, before: is this a prefill with new images?"""
        if kwargs is None:
            return
        if self._current() is not None:  # left by an interrupt, after which torch runs no hook
            self._end()
            complain(UNFINISHED)
        call = named(self._parameters, args, kwargs)
        encoded = brought(call, self._session.videos)
        if encoded:
            self._begin(call, encoded)
        else:
            check_images_have_pixels(self._architecture, call, self._session.videos)

    @never_compiled
    def _begin(self, call: dict[str, Any], encoded: dict[Modality, Any]) -> None:
        session = self._session
        check_router_logits(call)
        prompt = Prompt(call.get("input_ids"), call.get("inputs_embeds"))
        method = method_for(InUse(session.number, session.method), encoded.values())
        prefill = Prefill(session, method, prompt, tuple(encoded))
        if not self._running.start():
            return
        session.count_seen()
        set_current_prefill(prefill)
        self._inside.begin(prefill)
        for modality, output in encoded.items():
            if output is not None:
                prefill.receive(output, modality)

    def _close(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        """Vision-language model, after, also after an exception: then there is no output."""
        if self._current() is not None and not self._end() and output is not None:
            complain(PAST_HOOKS)

    def _end(self) -> bool:
        """This thread's prefill is over; False where it was not pruned."""
        prefill = self._current()
        set_current_prefill(None)
        if prefill is not None:
            self._inside.end(prefill)
        return self._running.finish()

    def _current(self) -> Prefill | None:
        prefill = current_prefill()
        return prefill if prefill is not None and prefill.session is self._session else None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        if kwargs is None:
            return None
        prefill = self._current()
        if prefill is not None:
            return args, self._planned(prefill, kwargs)
        base = self._architecture.base
        if not self._session.closed and tokens_in(kwargs) > 1:
            check_hooks_ran(base, self._opener in base._forward_pre_hooks)
        state = kv.state_of(kwargs.get("past_key_values"))
        if state is None:
            return None
        return args, continue_decoding(self._architecture.text_config, state, kwargs)

    @never_compiled
    def _planned(self, prefill: Prefill, kwargs: dict[str, Any]) -> dict[str, Any]:
        base = self._architecture.base
        if base is not self._architecture.model:
            return prefill.enter(kwargs)
        # generate() belongs to a model around it.
        with assisted_generation(check_outer_generate(base, self._session.videos)):
            return prefill.enter(kwargs)

    @never_compiled
    def _before_layer(self, index: int, args: Any, kwargs: Any) -> Any:
        """Also of the norm after the layers, which counts as one more."""
        prefill = self._current()
        if prefill is None:
            return None
        if not hasattr(prefill, "plan"):
            raise RuntimeError(f"stage 1: {PAST_HOOKS}")
        if index == len(self._architecture.layers):
            return prefill.before_norm(args), kwargs
        return prefill.before_layer(index, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        if output is None:
            return None
        prefill = self._current()
        if prefill is not None:
            return self._finished(prefill, output)
        state = kv.state_of(kwargs.get("past_key_values"))
        if state is not None and not torch.compiler.is_compiling():
            note_first_decode(state.report(), kwargs["past_key_values"])
        return None

    @never_compiled
    def _finished(self, prefill: Prefill, output: Any) -> Any:
        left = prefill.leave(output)
        self._running.mark_pruned()
        return left
