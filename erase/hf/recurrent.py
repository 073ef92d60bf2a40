"""Linear-attention layers of hybrid models: a state that absorbs tokens instead of a slot for each.

What a state has absorbed cannot be evicted: a token that stage 2 drops after layer k stays in the
states of the linear-attention layers up to k. The layers above never see it.

Slots of shorter rows that are empty after a gather lie behind a row's tokens, where a recurrence
would decay the state and push tokens out of the convolution's window. So rows of different length
run one after the other, each over its own tokens; rows of one length run together, as ever.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from erase.hf.masks import FULL_ATTENTION
from erase.hf.slots import Slots

LINEAR_ATTENTION = "linear_attention"
"""Kinds of layers in ``config.layer_types``, by which a hybrid stack also takes its masks."""
LINEAR_MODULE = "linear_attn"
"""Name of the module of a linear-attention layer."""


@dataclass(frozen=True)
class RaggedRows:
    """Stands in for a linear-attention mask: row b holds tokens in its first ``counts[b]`` slots.

    Only ``rowwise`` understands it, with which a session wraps these layers.
    """

    counts: tuple[int, ...]


def masks_by_kind(config: Any, full: Any, linear: Tensor | RaggedRows | None) -> Any:
    """What the decoder stack takes as its mask: one per kind of layer where there are two kinds."""
    if LINEAR_ATTENTION not in (getattr(config, "layer_types", None) or ()):
        return full
    return {FULL_ATTENTION: full, LINEAR_ATTENTION: linear}


def mask_of_layer(config: Any, index: int, masks: Any) -> Any:
    """The mask for one decoder layer."""
    return masks[config.layer_types[index]] if isinstance(masks, dict) else masks


def linear_mask(slots: Slots) -> Tensor | RaggedRows | None:
    """Mask of the linear-attention layers over the new slots."""
    if slots.empty is not None:
        return RaggedRows(slots.counts)
    # The stock mask, for padding that stayed where it was; a single token is none.
    return None if slots.width == 1 else slots.valid


def rowwise(module: nn.Module) -> Callable[..., Tensor]:
    """``module.forward`` that also takes ``RaggedRows`` as its mask, else it only delegates."""
    forward: Callable[..., Tensor] = module.forward
    layer_idx: Any = module.layer_idx

    @functools.wraps(forward)
    def linear_attention(*args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, RaggedRows):
            return forward(*args, **kwargs)
        kwargs["attention_mask"] = None
        cache = kwargs.pop("cache_params", None)
        hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
        if cache is None:
            # No token sees the slots behind it, and no state outlives the call.
            return forward(hidden, **kwargs)
        parts, outputs = [], []
        for rows, count in _runs(mask.counts):
            parts.append(_part_of(cache, layer_idx, rows))
            output = forward(hidden[rows, :count], cache_params=parts[-1], **kwargs)
            spare = hidden.shape[1] - count
            outputs.append(torch.nn.functional.pad(output, (0, 0, 0, spare)))
        _store(cache.layers[layer_idx], [part.layers[layer_idx] for part in parts])
        return torch.cat(outputs)

    return linear_attention


def _runs(counts: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Neighbouring rows of one length."""
    start = 0
    for count, rows in groupby(counts):
        stop = start + len(list(rows))
        yield slice(start, stop), count
        start = stop


def _part_of(cache: Any, layer_idx: int, rows: slice) -> Any:
    """A cache that holds these rows of one linear-attention layer, and cannot change the whole."""
    part, layer = copy.copy(cache), copy.copy(cache.layers[layer_idx])
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # states by number, and flags of theirs
            held = {
                key: item[rows].clone() if isinstance(item, Tensor) else item
                for key, item in value.items()
            }
            setattr(layer, name, held)
    part.layers = list(cache.layers)
    part.layers[layer_idx] = layer
    return part


def _store(layer: Any, parts: Sequence[Any]) -> None:
    """The states of all rows, by the layer's own methods: they fill its window to the last slot."""
    for state in layer.conv_states:
        window = torch.cat([part.conv_states[state] for part in parts])
        layer.update_conv_state(window, state_idx=state)
        memory = torch.cat([part.recurrent_states[state] for part in parts])
        layer.update_recurrent_state(memory, state_idx=state)
