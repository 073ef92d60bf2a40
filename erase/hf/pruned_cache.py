"""A pruned cache answers with its logical length: a subclass of its own class, put on in place."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, StaticCache

from erase.hf.cache import CacheState, StaticSlots, capacity, first_layer, physical_length
from erase.hf.slots import join_valid
from erase.report import PrefillReport
from erase.transfer import moved

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill


def mark_pruned(cache: Any, state: CacheState) -> None:
    """Attach ``state`` and give the cache its logical length."""
    if capacity(cache) is not None:
        state = dataclasses.replace(state, static=_static_slots(cache, state))
    cache._erase = state
    if not isinstance(cache, _Pruned):
        own: Any = type(cache)
        cache.__class__ = _pruned_class(own)


def cache_state(prefill: Prefill, report: PrefillReport) -> CacheState:
    """What a prefill that went through all its stages left in its cache."""
    slots, before = prefill.slots, prefill.state
    return CacheState(
        valid=join_valid(prefill.past_valid, prefill.past, slots, prefill.device),
        width=prefill.past + slots.width,
        evicted=prefill.logical_past + prefill.length - prefill.past - slots.width,
        drafted=prefill.drafted,
        padded=any(count != prefill.length for count in prefill.plan.counts.valid)
        or (before is not None and before.padded),
        report=weakref.ref(report),
        session=weakref.ref(prefill.session),
    )


def _static_slots(cache: Any, state: CacheState) -> StaticSlots:
    layer = first_layer(cache)
    device = layer.keys.device
    slots = torch.arange(layer.max_cache_len, device=device)
    prompt = slots < state.width
    if state.valid is None:
        valid = torch.ones_like(prompt).expand(layer.keys.shape[0], -1)
    else:
        spare = (0, layer.max_cache_len - state.width)
        valid = torch.nn.functional.pad(moved(state.valid, device), spare, value=True)
    return StaticSlots(
        valid=valid,
        prompt=prompt,
        evicted=torch.full((), state.evicted, dtype=torch.int64, device=device),
        plain=state.valid is None and not state.padded,
    )


class _Pruned:
    """What pruned caches of every kind share."""

    _erase: CacheState

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        state = self._erase
        if (state.valid is not None or state.padded) and _closed(state.session()):
            raise RuntimeError(
                "past_key_values: this cache was pruned by a session that is closed, and only "
                "that session knows which of its slots the attention mask means"
            )
        # Slots count from the end: the newest one is the newest token of the user's mask.
        parent: Any = super()
        kv_length, kv_offset = parent.get_mask_sizes(query_length, layer_idx)
        return kv_length, kv_offset + state.evicted

    def reset(self) -> None:
        parent: Any = super()
        parent.reset()
        del self._erase
        own: Any = type(self).__bases__[1]
        self.__class__ = own

    def _change_rows(self, name: str, argument: Any) -> None:
        getattr(super(), name)(argument)
        state = self._erase
        if state.valid is None:
            return

        def changed(rows: Tensor) -> Tensor:
            if name == "batch_repeat_interleave":
                return rows.repeat_interleave(argument, dim=0)
            return rows[moved(argument, rows.device)]

        static = state.static
        if static is not None:
            static = dataclasses.replace(static, valid=changed(static.valid))
        # A new state: shallow copies of this cache share the old one.
        self._erase = dataclasses.replace(state, valid=changed(state.valid), static=static)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change_rows("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change_rows("batch_select_indices", indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change_rows("reorder_cache", beam_idx)


_Dynamic: Any = DynamicCache if TYPE_CHECKING else object
_Static: Any = StaticCache if TYPE_CHECKING else object


class _PrunedDynamic(_Pruned, _Dynamic):
    """Methods of a pruned dynamic cache, in front of those of its own class."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(super().get_seq_length(layer_idx)) + self._erase.evicted

    def crop(self, tokens_to_remove: int) -> None:
        # Positive is the older meaning: the length to keep.
        removed = abs(tokens_to_remove)
        if tokens_to_remove > 0:
            removed = max(0, self.get_seq_length() - tokens_to_remove)
        state = self._erase
        free = physical_length(self) - (state.width - state.drafted)
        if removed > free:
            raise ValueError(
                f"tokens_to_remove: expected at most {free}, the tokens after the pruned "
                f"prompt, got {removed}; within it, slots and tokens no longer match"
            )
        super().crop(-removed)


class _PrunedStatic(_Pruned, _Static):
    """The same of a static cache, whose lengths are numbers on the device."""

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        static = self._erase.static
        length = super().get_seq_length(layer_idx)
        # Not by the host's number, which compiled code would be specialised for.
        return length if static is None else length + moved(static.evicted, length.device)


def _closed(session: Any) -> bool:
    return session is None or session.closed


@functools.cache
def _pruned_class(base: Any) -> Any:
    """Subclass of the cache class ``base`` with a logical length."""
    front: Any = _PrunedStatic if issubclass(base, StaticCache) else _PrunedDynamic
    return type(f"Pruned{base.__name__}", (front, base), {})
