"""Decode steps, and turns without new images, on a cache that was pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from erase.hf.cache import (
    CacheState,
    StaticSlots,
    capacity,
    first_layer,
    physical_length,
    refuse_static_turn,
)
from erase.hf.masks import (
    FULL_ATTENTION,
    last_keys,
    like_given,
    past_validity,
    slot_mask,
    token_mask,
)
from erase.hf.recurrent import masks_by_kind
from erase.transfer import download, moved


def continue_decoding(config: Any, state: CacheState, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the language model with the mask in cache slots instead of prompt tokens.

    Nothing is read on the host, and where no slot is empty and no mask was given nothing changes.

    Raises:
        ValueError: a mask that is not causal with padding; several tokens on a static cache.
    """
    embeds, given = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    positions = kwargs.get("position_ids")
    kwargs = dict(kwargs)
    if positions is not None and positions.ndim == 3:
        # A fourth row holds token numbers, whose gaps would be read as packed sequences.
        kwargs["position_ids"] = positions[-3:]
    if state.static is not None:
        return _continue_static(config, state, state.static, kwargs)
    if state.valid is None and given is None:
        return kwargs
    batch, length = embeds.shape[:2]
    cache = kwargs["past_key_values"]
    mask = _tokens(given, batch, cache.get_seq_length(), length)
    if state.valid is None and mask is None:
        return kwargs
    past = physical_length(cache)
    device = embeds.device
    valid = past_validity(state.valid, state.width, mask, batch, past, 0, device, new=length)
    flash = is_flash_attention_requested(config)
    # Flash attention with a mask reads in every layer: one read, as in the stock mask, saves them.
    if flash and valid is not None and state.valid is None and _all(valid):
        kwargs["attention_mask"] = like_given(given, masks_by_kind(config, None, None))
        return kwargs
    made = slot_mask(config, valid, batch, length, past, embeds.dtype, device)
    # To a state the past is the same whatever was evicted: recurrent layers mask new padding only.
    padding = None if mask is None or length == 1 or valid is None else valid[:, -length:]
    kwargs["attention_mask"] = like_given(given, masks_by_kind(config, made, padding))
    return kwargs


def _all(flags: Tensor) -> bool:
    """Whether all are true; the host waits."""
    return bool(download(flags.all().reshape(1))[0])


def _tokens(given: Any, batch: int, past: int, length: int) -> Tensor | None:
    """The given mask as one over tokens."""
    mask = token_mask(given, batch, past, length, static=False)
    # A single query is never unfit. For more, rare with a prebuilt mask, the host waits: there is
    # no plan here that could bring the answer along.
    if mask.unfit is not None and length > 1 and not _all(~mask.unfit):
        raise ValueError(
            "attention_mask: expected a causal mask with padding; this one hides or shows more, "
            "and evicted tokens would have to be found in it"
        )
    return mask.tokens


def _continue_static(
    config: Any, state: CacheState, static: StaticSlots, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The same on a static cache, whose length only its device knows; shapes stay the same."""
    embeds, given = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    if embeds.shape[1] > 1:
        refuse_static_turn()
    mask = given.get(FULL_ATTENTION) if isinstance(given, dict) else given
    if static.plain and mask is not None and mask.ndim == 4:
        return kwargs  # the length it was made for is the logical one, and no slot is empty
    # Without a mask one is made here: the stack's own would be compiled for this prompt's lengths.
    cache = kwargs["past_key_values"]
    layer, room, device = first_layer(cache), capacity(cache), embeds.device
    valid = moved(static.valid, device)
    if mask is not None:
        tail = _later_tokens(mask, state, static)
        valid = torch.where(moved(static.prompt, device), valid, moved(tail, device))
    batch, past = embeds.shape[0], moved(layer.cumulative_length, device)
    if is_flash_attention_requested(config):
        # No causality is applied to a single query, so slots to come are hidden here.
        valid = valid & (torch.arange(layer.max_cache_len, device=device) <= past)
    made = slot_mask(config, valid, batch, 1, past, embeds.dtype, device, room)
    kwargs["attention_mask"] = like_given(given, masks_by_kind(config, made, None))
    return kwargs


def _later_tokens(mask: Tensor, state: CacheState, static: StaticSlots) -> Tensor:
    """bool [B, capacity]: what a mask says of the slots after the prompt, wrong before."""
    if mask.ndim == 4:
        return last_keys(mask)  # made for this cache, which shifts slots by what was evicted
    room = static.valid.shape[1]
    later = mask[:, state.evicted :][:, :room]
    return torch.nn.functional.pad(later.bool(), (0, room - later.shape[1]))
