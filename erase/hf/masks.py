"""Attention masks over cache slots, made by transformers' own mask functions.

Slots ascend in the order of the tokens they hold, so causality is slot order whatever was evicted;
only empty slots need masking. Masks are built without reading anything on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.utils.generic import is_flash_attention_requested

from erase.transfer import moved

FULL_ATTENTION = "full_attention"
"""Key of the one mask that matters here where masks come by the kind of layer."""
HIDDEN_BIAS = -1e4
"""An additive mask of this or less hides a key: its weight is 0 in every dtype."""


def slot_mask(
    config: Any,
    valid: Tensor | None,  # bool [B, past + length] or [B, capacity], None: every slot
    batch: int,
    length: int,
    past: int | Tensor,
    dtype: torch.dtype,
    device: torch.device,
    capacity: int | None = None,
) -> Any:
    """The mask that a decoder layer expects for ``length`` new slots after ``past`` old ones.

    ``capacity``: slots of a static cache, whose empty ones layers attend to as well.

    Returns None where the attention kernel's own causality is enough, a 2-D mask for flash
    attention, else a 4-D one.
    """
    if is_flash_attention_requested(config):
        if valid is None and capacity is not None:
            # Without one, flash attention would take all slots of a static cache for tokens.
            return torch.ones((batch, int(past) + length), dtype=torch.bool, device=device)
        return valid
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=batch,
        q_length=length,
        kv_length=past + length if capacity is None else capacity,
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
    new: int = 0,
) -> Tensor | None:
    """Validity of the ``past`` slots before this call: bool [B, past], None where all are valid.

    Slots after the pruned prefill hold one token each, so their validity is the user's mask.

    ``new``: tokens of this call to include, at the end of the mask (``skip`` is 0 then). One piece
    of the mask for all later tokens, since compiled code is made anew for a piece of one token.
    """
    if past == 0 or (valid is None and mask is None):
        return None
    front = min(width, past)  # the cache may have been cropped into the prefill
    tail = past - front + new
    if valid is None:
        head = torch.ones(batch, front, dtype=torch.bool, device=device)
    else:
        # Beam search expands rows after the prefill.
        head, repeats = valid[:, :front], batch // valid.shape[0]
        if repeats > 1:
            head = head.repeat_interleave(repeats, dim=0)
    if mask is None:
        rest = torch.ones(batch, tail, dtype=torch.bool, device=device)
    else:
        end = mask.shape[1] - skip
        rest = moved(mask[:, end - tail : end], device, torch.bool)
    return torch.cat([moved(head, device), rest], dim=1)


@dataclass(frozen=True)
class TokenMask:
    """A mask over tokens, however it came."""

    tokens: Tensor | None  # [B, past + length], None: every token
    unfit: Tensor | None = None  # bool [B], rows whose 4-D mask says more than ``tokens``


def token_mask(mask: Any, batch: int, past: int, length: int, static: bool) -> TokenMask:
    """The mask over tokens that a given mask stands for; nothing is read on the host.

    A prebuilt mask ``[B, heads, length, keys]``, bool or additive, stands for the keys that any of
    its queries sees, and is unfit where it is not exactly causality among those.

    Args:
        mask: None, 2-D, 4-D, or a dict of them by kind of layer.
        past: tokens before this call, evicted ones included.
        static: whether masks may go on for the empty slots of a static cache.

    Raises:
        ValueError: any other kind or shape.
    """
    if isinstance(mask, dict):
        if FULL_ATTENTION not in mask:
            raise ValueError(
                f"attention_mask: expected an entry {FULL_ATTENTION!r}, got {sorted(mask)}"
            )
        mask = mask[FULL_ATTENTION]
    if mask is None:
        return TokenMask(None)
    total = past + length
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return TokenMask(mask[:, :total] if static else mask)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        kind = f"a {mask.ndim}-D tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected [batch, tokens] or None, got {kind}")
    keys = mask.shape[-1]
    rows_fit = mask.shape[0] in (1, batch) and mask.shape[2] == length
    if not rows_fit or not (keys == total or (static and keys > total)):
        raise ValueError(
            f"attention_mask: expected [{batch}, 1, {length}, {total}] of a prebuilt mask, got "
            f"{list(mask.shape)}"
        )
    return _without_causality(mask, batch, past, length)


def _without_causality(mask: Tensor, batch: int, past: int, length: int) -> TokenMask:
    seen, odd = mask, None
    if mask.dtype != torch.bool:
        seen = mask == 0
        odd = ~seen & (mask > HIDDEN_BIAS)
    valid = seen.any(dim=1).any(dim=1)  # [B, keys]
    queries = torch.arange(past, past + length, device=mask.device)
    keys = torch.arange(mask.shape[-1], device=mask.device)
    causal = keys <= queries[:, None]
    wrong = seen ^ (causal & valid[:, None, None, :])
    wrong = wrong if odd is None else wrong | odd
    # What padding sees is nobody's concern.
    wrong = wrong & valid[:, None, past : past + length, None]
    unfit = wrong.flatten(1).any(dim=1)
    return TokenMask(valid[:, : past + length].expand(batch, -1), unfit.expand(batch))


def last_keys(mask: Tensor) -> Tensor:
    """bool [B, keys]: what the last query of a prebuilt 4-D mask sees."""
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last > HIDDEN_BIAS


def like_given(given: Any, mask: Any) -> Any:
    """``mask`` in the form of ``given``: where masks came by kind of layer, so must this one."""
    if isinstance(mask, dict) or not isinstance(given, dict):
        return mask
    return {**given, FULL_ATTENTION: mask}
