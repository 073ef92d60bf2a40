"""Attention masks over cache slots, made by transformers' own mask functions.

Slots ascend in the order of the tokens they hold, so causality is slot order whatever was evicted;
only empty slots need masking. Masks are built without reading anything on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.utils.generic import is_flash_attention_requested

from erase.transfer import moved


def slot_mask(
    config: Any,
    valid: Tensor | None,  # bool [B, past + length], None: every slot
    batch: int,
    length: int,
    past: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The mask that a decoder layer expects for ``length`` new slots after ``past`` old ones.

    Returns None where the attention kernel's own causality is enough, a 2-D mask for flash
    attention, else a 4-D one.
    """
    if is_flash_attention_requested(config):
        return valid
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=batch,
        q_length=length,
        kv_length=past + length,
        q_offset=past,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=valid,
        # Deciding whether a given mask can be skipped would read it on the host.
        allow_is_causal_skip=valid is None,
        dtype=dtype,
        device=device,
        config=config,
    )


def past_validity(
    valid: Tensor | None,  # bool [B0, width], slots of the last pruned prefill
    width: int,
    mask: Tensor | None,  # [B, logical tokens], ends ``skip`` tokens after the past
    batch: int,
    past: int,
    skip: int,
    device: torch.device,
) -> Tensor | None:
    """Validity of the ``past`` slots before this call: bool [B, past], None where all are valid.

    Slots after the pruned prefill hold one token each, so their validity is the user's mask.
    """
    if past == 0 or (valid is None and mask is None):
        return None
    front = min(width, past)  # the cache may have been cropped into the prefill
    tail = past - front
    if valid is None:
        head = torch.ones(batch, front, dtype=torch.bool, device=device)
    else:
        # Beam search expands rows after the prefill.
        head = valid[:, :front].repeat_interleave(batch // valid.shape[0], dim=0)
    if mask is None:
        rest = torch.ones(batch, tail, dtype=torch.bool, device=device)
    else:
        end = mask.shape[1] - skip
        rest = moved(mask[:, end - tail : end], device, torch.bool)
    return torch.cat([moved(head, device), rest], dim=1)
