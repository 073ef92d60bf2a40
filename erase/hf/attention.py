"""Sees a decoder layer's own queries and keys: the entry of the attention registry, shadowed.

While a session is open, the attention function in use (``"sdpa"``, ``"eager"``, ...) is replaced
under its own name by one that calls the original and then, for the one attention module that the
current forward wants to score, hands over query and key. For every other module it only delegates.
The name stays, since masks and flash-attention kernels are looked up by it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from erase.hf.current import current_prefill
from erase.hf.prefill_hooks import never_compiled

_lock = threading.Lock()
_users: dict[str, int] = {}
_previous: dict[str, Callable[..., Any] | None] = {}


def shadow(name: str) -> None:
    """Shadow the registry entry ``name``; counts its users."""
    with _lock:
        _users[name] = _users.get(name, 0) + 1
        if _users[name] > 1:
            return
        local = ALL_ATTENTION_FUNCTIONS._local_mapping
        _previous[name] = local.get(name)
        inner = ALL_ATTENTION_FUNCTIONS.get(name)
        ALL_ATTENTION_FUNCTIONS[name] = _observing(inner)


def unshadow(name: str) -> None:
    """Undo one ``shadow``; the last user restores the entry."""
    with _lock:
        _users[name] -= 1
        if _users[name]:
            return
        del _users[name]
        previous = _previous.pop(name)
        if previous is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = previous


def _observing(inner: Callable[..., Any] | None) -> Callable[..., Any]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        forward = inner or _own_eager(type(module))
        result = forward(module, query, key, value, attention_mask, **kwargs)
        prefill = current_prefill()
        if prefill is not None and prefill.wants(module):
            never_compiled(prefill.observe)(module, query, key, kwargs.get("scaling"))
        return result

    return attention


_eager: dict[type[nn.Module], Callable[..., Any]] = {}


def _own_eager(kind: type[nn.Module]) -> Callable[..., Any]:
    """The model file's own function: "eager" is not in the registry."""
    own = _eager.get(kind)
    return _find_eager(kind) if own is None else own


def _find_eager(kind: type[nn.Module]) -> Callable[..., Any]:
    forward: Any = inspect.unwrap(kind.forward)
    # A file may bring several, one for its vision tower say: take the one that forward names.
    named = [n for n in forward.__code__.co_names if n.endswith("eager_attention_forward")]
    own: Callable[..., Any] = forward.__globals__[named[0] if named else "eager_attention_forward"]
    _eager[kind] = own
    return own
