"""The key-value cache of a pruned prefill: eviction, and its two lengths.

After pruning, a cache holds fewer slots (its physical length) than tokens were fed (its logical
length). generate() slices inputs and continues positions by the logical length; masks are sized by
the physical one. A cache that was pruned therefore answers ``get_seq_length`` with the logical
length through a subclass of its own class, and ``get_mask_sizes`` with the physical one, shifted
so that the last slot is the last token.

A ``StaticCache`` keeps its tensors, so eviction moves slots within them and lowers the lengths that
its layers hold on the device: nothing is read on the host, and no memory is saved unless the cache
was made for fewer tokens than the unpruned prompt has.

Caches of hybrid models also hold layers without slots, whose recurrent states cannot be evicted:
every length and every byte here is of the layers with slots.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
)

from erase.hf.gather import gather_rows, gather_slots_
from erase.report import PrefillReport
from erase.transfer import moved

CACHE_REFUSALS = {
    "quantized": "a quantized cache keeps its keys in another form than the one eviction moves",
    "offloaded": "an offloaded cache moves keys off the device while layers run",
    "offloaded_static": "an offloaded cache moves keys off the device while layers run",
    "offloaded_hybrid": "an offloaded cache moves keys off the device while layers run",
    "paged": "a paged cache shares its blocks between requests",
}
"""``cache_implementation`` values that are refused, and why."""
CACHES = (DynamicCache, StaticCache)
EVICTABLE = (DynamicLayer, StaticLayer)
"""Cache layers whose slots can be evicted; not their subclasses, which keep more than slots."""
WITHOUT_SLOTS = (LinearAttentionLayer,)
"""Cache layers of fixed size."""


@dataclass(frozen=True)
class StaticSlots:
    """What decode steps on a static cache need, on its device: no number of it is known to them."""

    valid: Tensor  # bool [B, capacity], False where a slot of the prompt is empty
    prompt: Tensor  # bool [capacity], the slots of the prompt
    evicted: Tensor  # i64 [], logical minus physical length
    plain: bool  # no slot is empty and no padding was dropped


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
    static: StaticSlots | None = None  # of a static cache


def check_cache(cache: Any) -> None:
    """ValueError unless ``cache`` is None or a plain cache with room for a turn.

    Its layers are of full attention, or recurrent ones of a hybrid model. A static cache serves one
    turn: once pruned it must be ``reset()`` before the next prompt.
    """
    if cache is None:
        return
    if not isinstance(cache, CACHES):
        kind = type(cache).__name__
        reason = next((why for key, why in CACHE_REFUSALS.items() if key in kind.lower()), None)
        reason = reason or "pruning evicts slots of a DynamicCache or a StaticCache only"
        raise ValueError(f"past_key_values: {kind} is not supported: {reason}")
    if getattr(cache, "offloading", False):
        raise ValueError(
            f"past_key_values: offloading is not supported: {CACHE_REFUSALS['offloaded']}"
        )
    for layer in cache.layers:
        if type(layer) not in (*EVICTABLE, *WITHOUT_SLOTS):
            raise ValueError(
                f"past_key_values: layer {type(layer).__name__} is not supported: only "
                "full-attention DynamicLayer and StaticLayer slots can be evicted"
            )
    state = state_of(cache)
    if state is not None and state.static is not None:
        refuse_static_turn()


def refuse_static_turn() -> None:
    """ValueError: several turns on a static cache."""
    raise ValueError(
        "past_key_values: several turns on a StaticCache are not supported: pruning shortened it "
        "in place; call reset() on it before the next prompt, or use a DynamicCache"
    )


def state_of(cache: Any) -> CacheState | None:
    """State of a pruned cache, None for any other."""
    return getattr(cache, "_erase", None)


def slot_layers(cache: Any) -> list[Any]:
    """The layers whose slots can be evicted, those of full attention; none for None."""
    layers = () if cache is None else cache.layers
    return [layer for layer in layers if isinstance(layer, EVICTABLE)]


def first_layer(cache: Any) -> Any:
    """The first layer whose slots can be evicted, None where there is none yet."""
    layers = () if cache is None else cache.layers
    return next((layer for layer in layers if isinstance(layer, EVICTABLE)), None)


def capacity(cache: Any) -> int | None:
    """Slots that a static cache has room for, None for any other."""
    layer = first_layer(cache)
    return layer.max_cache_len if isinstance(layer, StaticLayer) else None


def physical_length(cache: Any) -> int:
    """Slots that the cache holds per row, 0 for None.

    Also 0 for a static cache, which holds its length on the device: a prefill demands an empty one
    and finds out with the numbers of its plan (``filled_rows``).
    """
    layer = first_layer(cache)
    return 0 if layer is None or isinstance(layer, StaticLayer) else int(layer.get_seq_length())


def logical_length(cache: Any) -> int:
    """Tokens that were fed, evicted ones included; 0 for a static cache, likewise."""
    if cache is None or capacity(cache) is not None:
        return 0
    return int(cache.get_seq_length())


def filled_rows(cache: Any, batch: int, device: torch.device) -> Tensor | None:
    """bool [B], all True where a static cache already holds tokens; None where it cannot."""
    layer = first_layer(cache)
    if not isinstance(layer, StaticLayer) or not layer.is_initialized:
        return None
    return moved(layer.cumulative_length, device).ne(0).expand(batch)


def check_room(cache: Any, needed: int) -> None:
    """ValueError where a static cache is too small for ``needed`` slots."""
    room = capacity(cache)
    if room is not None and needed > room:
        raise ValueError(
            f"past_key_values: expected a StaticCache with max_cache_len of at least {needed}, the "
            f"tokens that enter the language model, got {room}"
        )


def written(cache: Any, past: int) -> Any:
    """The cache, None where this forward left it at ``past`` slots: checkpointed layers do so."""
    kept = capacity(cache) is not None or physical_length(cache) > past
    return cache if kept else None


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
            static ones keep their tensors, and only what they say of their length changes;
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
        keys, values = shorter[2 * i], shorter[2 * i + 1]
        if not isinstance(layer, StaticLayer):
            layer.keys, layer.values = keys, values
            continue
        layer.cumulative_length.fill_(past + width)
        if not in_place:
            spare = (0, 0, 0, layer.max_cache_len - past - width)
            layer.keys, layer.values = (torch.nn.functional.pad(t, spare) for t in (keys, values))


def layer_lengths(cache: Any, expected: int) -> list[int | None]:
    """Slots that each layer holds, None for a layer without slots.

    Static layers, which the host cannot ask, hold ``expected``.
    """
    return [
        None
        if not isinstance(layer, EVICTABLE)
        else expected
        if isinstance(layer, StaticLayer)
        else int(layer.get_seq_length())
        for layer in cache.layers
    ]


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
