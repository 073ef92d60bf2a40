"""The key-value cache of a pruned prefill: eviction, and its two lengths.

After pruning, a cache holds fewer slots (its physical length) than tokens were fed (its logical
length). generate() slices inputs and continues positions by the logical length; masks are sized by
the physical one. A cache that was pruned therefore answers ``get_seq_length`` with the logical
length through a subclass of its own class, and ``get_mask_sizes`` with the physical one, shifted
so that the last slot is the last token.

Caches of hybrid models also hold layers without slots, whose recurrent states cannot be evicted:
every length and every byte here is of the layers with slots.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from erase.hf.gather import gather_rows, gather_slots_
from erase.report import PrefillReport
from erase.transfer import moved

CACHE_REFUSALS = {
    "quantized": "a quantized cache keeps its keys in another form than the one eviction moves",
    "offloaded": "an offloaded cache moves keys off the device while layers run",
    "offloaded_static": "an offloaded cache moves keys off the device while layers run",
    "offloaded_hybrid": "an offloaded cache moves keys off the device while layers run",
    "static": "a static cache does not shrink; pass a DynamicCache (the default)",
    "paged": "a paged cache shares its blocks between requests",
}
"""``cache_implementation`` values that are refused, and why."""
EVICTABLE = (DynamicLayer,)
"""Cache layers whose slots can be evicted; not their subclasses, which keep more than slots."""
WITHOUT_SLOTS = (LinearAttentionLayer,)
"""Cache layers of fixed size."""


@dataclass
class CacheState:
    """What pruning left in a cache."""

    valid: Tensor | None  # bool [B, width], None: every slot of every row
    width: int  # physical slots right after the last pruned prefill
    evicted: int  # logical minus physical length
    drafted: int  # last slots of that prefill that assisted generation may take back
    padded: bool  # padding was dropped, so a mask over prompt tokens does not fit the slots
    report: weakref.ref[PrefillReport]
    session: weakref.ref[Any]


def check_cache(cache: Any) -> None:
    """ValueError unless ``cache`` is None or a plain dynamic cache.

    Its layers are of full attention, or recurrent ones of a hybrid model.
    """
    if cache is None:
        return
    if not isinstance(cache, DynamicCache):
        kind = type(cache).__name__
        reason = next((why for key, why in CACHE_REFUSALS.items() if key in kind.lower()), None)
        reason = reason or "pruning evicts slots of a DynamicCache only"
        raise ValueError(f"past_key_values: {kind} is not supported: {reason}")
    if getattr(cache, "offloading", False):
        raise ValueError(
            f"past_key_values: offloading is not supported: {CACHE_REFUSALS['offloaded']}"
        )
    for layer in cache.layers:
        if type(layer) not in (*EVICTABLE, *WITHOUT_SLOTS):
            raise ValueError(
                f"past_key_values: layer {type(layer).__name__} is not supported: only "
                "full-attention DynamicLayer slots can be evicted"
            )


def state_of(cache: Any) -> CacheState | None:
    """State of a pruned cache, None for any other."""
    return getattr(cache, "_erase", None)


def slot_layers(cache: Any) -> list[Any]:
    """The layers whose slots can be evicted, those of full attention; none for None."""
    layers = () if cache is None else cache.layers
    return [layer for layer in layers if isinstance(layer, EVICTABLE)]


def layer_lengths(cache: Any) -> list[int | None]:
    """Slots that each layer holds per row, None for a layer without slots."""
    return [
        int(layer.get_seq_length()) if isinstance(layer, EVICTABLE) else None
        for layer in cache.layers
    ]


def physical_length(cache: Any) -> int:
    """Slots that the cache holds per row, 0 for None."""
    layers = slot_layers(cache)
    return int(layers[0].get_seq_length()) if layers else 0


def logical_length(cache: Any) -> int:
    """Tokens that were fed, evicted ones included."""
    return 0 if cache is None else int(cache.get_seq_length())


def evict(
    cache: Any,
    last_layer: int,
    past: int,
    keep: Tensor,
    counts: Tensor,
    width: int,
    *,
    in_place: bool,
) -> None:
    """Move the kept slots of layers 0..last_layer to the front of this prefill's slots.

    Args:
        cache: its layers 0..last_layer are rewritten and shortened to ``past + width`` slots;
            recurrent ones keep what they absorbed.
        past: slots before this prefill, which stay.
        keep: i32 [B, K], slots counted from ``past``, ascending.
        counts: i32 [B].
        in_place: False where autograd still needs the old keys and values.
    """
    layers = [x for x in cache.layers[: last_layer + 1] if isinstance(x, EVICTABLE)]
    planes = [t for layer in layers for t in (layer.keys, layer.values)]
    fresh = [t.narrow(-2, past, t.shape[-2] - past) for t in planes]
    if in_place:
        gather_slots_(fresh, keep, counts)
        shorter = [t.narrow(-2, 0, past + width) for t in planes]
    else:
        kept = gather_rows([t.transpose(0, 1) for t in fresh], keep, counts)
        shorter = [
            torch.cat([t.narrow(-2, 0, past), m.transpose(0, 1)], dim=-2)
            for t, m in zip(planes, kept, strict=True)
        ]
    for i, layer in enumerate(layers):
        layer.keys, layer.values = shorter[2 * i], shorter[2 * i + 1]


def mark_pruned(cache: Any, state: CacheState) -> None:
    """Attach ``state`` and give the cache its logical length."""
    cache._erase = state
    if not isinstance(cache, _PrunedCache):
        own: Any = type(cache)
        cache.__class__ = _pruned_class(own)


_AnyCache: Any = DynamicCache if TYPE_CHECKING else object


class _PrunedCache(_AnyCache):
    """Methods of a pruned cache, in front of those of its own class; rows follow the cache's."""

    _erase: CacheState

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(super().get_seq_length(layer_idx)) + self._erase.evicted

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        session = self._erase.session()
        uneven = self._erase.valid is not None or self._erase.padded
        if uneven and (session is None or session.closed):
            raise RuntimeError(
                "past_key_values: this cache was pruned by a session that is closed, and only "
                "that session knows which of its slots the attention mask means"
            )
        # Slots count from the end: the newest one is the newest token of the user's mask.
        kv_length, kv_offset = super().get_mask_sizes(query_length, layer_idx)
        return kv_length, kv_offset + self._erase.evicted

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

    def reset(self) -> None:
        super().reset()
        del self._erase
        own: Any = type(self).__bases__[1]
        self.__class__ = own

    def _change_rows(self, name: str, argument: Any) -> None:
        getattr(super(), name)(argument)
        valid = self._erase.valid
        if valid is None:
            return
        if name == "batch_repeat_interleave":
            valid = valid.repeat_interleave(argument, dim=0)
        else:
            valid = valid[moved(argument, valid.device)]
        # A new state: shallow copies of this cache share the old one.
        self._erase = dataclasses.replace(self._erase, valid=valid)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change_rows("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change_rows("batch_select_indices", indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change_rows("reorder_cache", beam_idx)


@functools.cache
def _pruned_class(base: Any) -> Any:
    """Subclass of the cache class ``base`` with a logical length."""
    return type(f"Pruned{base.__name__}", (_PrunedCache, base), {})


def kv_bytes(cache: Any) -> int:
    """Bytes of all keys and values that the layers refer to."""
    return sum(t.numel() * t.element_size() for t in _tensors(cache))


def kv_storage_bytes(cache: Any) -> int:
    """Bytes of the distinct storages behind them."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(cache)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(cache: Any) -> list[Tensor]:
    layers = [layer for layer in slot_layers(cache) if layer.is_initialized]
    return [t for layer in layers for t in (layer.keys, layer.values)]
