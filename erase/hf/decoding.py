"""Decode steps, and turns without new images, on a cache that was pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from erase.hf.cache import CacheState, physical_length
from erase.hf.masks import past_validity, slot_mask
from erase.hf.recurrent import masks_by_kind
from erase.transfer import moved


def continue_decoding(config: Any, state: CacheState, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the language model with the mask in cache slots instead of prompt tokens.

    Nothing is read on the host, and where no slot is empty and no mask was given nothing changes.

    Raises:
        ValueError: a mask that is neither None nor 2-D.
    """
    embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    positions = kwargs.get("position_ids")
    kwargs = dict(kwargs)
    if positions is not None and positions.ndim == 3:
        # A fourth row holds token numbers, whose gaps would be read as packed sequences.
        kwargs["position_ids"] = positions[-3:]
    if state.valid is None and mask is None:
        return kwargs
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        got = f"{mask.ndim}-D" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected [batch, tokens] or None, got {got}")
    batch, length = embeds.shape[:2]
    past = physical_length(kwargs["past_key_values"])
    old = past_validity(state.valid, state.width, mask, batch, past, length, embeds.device)
    if mask is None:
        new = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
    else:
        new = moved(mask[:, -length:], embeds.device, torch.bool)
    valid = new if old is None else torch.cat([old, new], dim=1)
    made = slot_mask(config, valid, batch, length, past, embeds.dtype, embeds.device)
    # To a state the past is the same whatever was evicted: recurrent layers mask new padding only.
    padding = None if mask is None or length == 1 else new
    kwargs["attention_mask"] = masks_by_kind(config, made, padding)
    return kwargs
