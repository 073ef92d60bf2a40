"""What is in place only while a prefill runs: hooks of the decoder layers, and no compiled code.

A decode step passes through every layer, where even a hook that does nothing costs time, so layers
carry hooks during prefills only. Prefills read their plan on the host, which compiled code cannot:
while one runs, torch ignores what was compiled, also around it (``model.forward``) and within it
(single layers, whose compiled code may know nothing of hooks).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill

never_compiled = torch.compiler.disable(
    reason="a pruned prefill reads its plan on the host; compile decode steps only, or prefill "
    "with an uncompiled forward"
)
"""Decorates what runs during prefills only."""

_stance_lock = threading.Lock()
_stance: list[Any] = []  # of torch's compiler, while somebody runs eagerly
# One that an interrupt left behind stays until its thread's next forward, or the session's end.
_eager: WeakSet[Any] = WeakSet()


class Eagerly:
    """A forward that runs uncompiled."""


def run_eagerly(user: Any) -> None:
    """Compiled code runs as it was written until every user called ``run_compiled``."""
    with _stance_lock:
        _eager.add(user)
        if not _stance:
            _stance.append(torch.compiler.set_stance("force_eager"))


def run_compiled(user: Any) -> None:
    """Undo ``run_eagerly``; without effect where it is undone already."""
    with _stance_lock:
        _eager.discard(user)
        _settle()


def settle() -> None:
    """Let compiled code run again where the last user vanished without undoing anything."""
    with _stance_lock:
        _settle()


def _settle() -> None:
    if _stance and not _eager:
        _stance.pop().__exit__(None, None, None)


def brings_images(call: dict[str, Any]) -> bool:
    """Whether a forward with these arguments is a prefill with new images."""
    if call.get("pixel_values") is not None:
        return True
    return (call.get("mm_encoder_outputs") or {}).get("image") is not None


def tokens_in(call: dict[str, Any]) -> int:
    """Tokens of each row that a forward with these arguments is fed."""
    given = (call.get(name) for name in ("input_ids", "inputs_embeds"))
    return next((tokens.shape[1] for tokens in given if tokens is not None), 0)


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of what ``module.forward`` takes by position."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def named(parameters: tuple[str, ...], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs} if args else kwargs


class BoundToModel:
    """Hooks of one model: neither they nor a hooked model can be copied or pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """TypeError."""
        raise TypeError(
            "model: it has an open pruning session; remove the session before the model is "
            "copied or pickled"
        )


class AroundModel(BoundToModel):
    """Hooks under which a prefill runs uncompiled although ``model.forward`` was compiled."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = parameters_of(model)
        self._here = threading.local()
        self._users: set[Eagerly] = set()  # of all threads
        self._handles = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        for user in list(self._users):
            run_compiled(user)

    def _before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if kwargs is None or torch.compiler.is_compiling():
            return  # without kwargs another thread is just adding or removing the hook
        call = named(self._parameters, args, kwargs)
        if brings_images(call) or tokens_in(call) > 1:
            self._compiled_again()  # one that an interrupt left here
            self._here.user = user = Eagerly()
            self._users.add(user)
            run_eagerly(user)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if not torch.compiler.is_compiling():
            self._compiled_again()

    def _compiled_again(self) -> None:
        user = vars(self._here).pop("user", None)
        if user is not None:
            self._users.discard(user)
            run_compiled(user)


class PrefillHooks:
    """The prefills of one session that are under way, in any thread."""

    def __init__(
        self, layers: Sequence[nn.Module], before_layer: Callable[[int, Any, Any], Any]
    ) -> None:
        self._layers = layers
        self._before_layer = before_layer
        self._lock = threading.Lock()
        self._prefills: WeakSet[Prefill] = WeakSet()
        self._hooks = contextlib.ExitStack()
        self._hooked = False

    @never_compiled
    def begin(self, prefill: Prefill) -> None:
        """Hooks for a prefill, unless another one has put them in place."""
        with self._lock:
            self._prefills.add(prefill)
            if not self._hooked:
                self._hooked = True
                for index, layer in enumerate(self._layers):
                    hook = functools.partial(self._before, index)
                    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                    self._hooks.callback(handle.remove)
        run_eagerly(prefill)

    @never_compiled
    def end(self, prefill: Prefill) -> None:
        """The last prefill under way takes the hooks away."""
        run_compiled(prefill)
        with self._lock:
            self._prefills.discard(prefill)
            if not self._prefills:
                self._take_away()

    def close(self) -> None:
        """Take the hooks away, whatever is under way."""
        for prefill in list(self._prefills):
            run_compiled(prefill)
        with self._lock:
            self._take_away()
        settle()

    def _take_away(self) -> None:
        self._hooked = False
        self._hooks.close()

    def _before(self, index: int, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        # Another thread's decode step may see a hook without its being marked to take kwargs.
        return None if kwargs is None else self._before_layer(index, args, kwargs)
