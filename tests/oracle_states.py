"""Linear-attention layers of the oracle: their state must never have met a pruned token.

A recurrence cannot be masked: a zeroed token still decays the state and moves the convolution's
window. So each row's visible tokens run through the stock layer by themselves, on a cache of their
own that goes on from the row's state. Nothing here comes from the packages under test.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache


def see_only(
    module: Any, config: Any, visible: Callable[[], torch.Tensor | None]
) -> SimpleNamespace:
    """Let a linear-attention module see the ``visible()`` tokens of each call, bool [B, S] or None.

    None leaves the call to the stock module. Returns a handle with ``remove()``.
    """
    stock, index = module.forward, module.layer_idx

    def forward(hidden_states: torch.Tensor, cache_params: Any = None, **kwargs: Any) -> Any:
        seen = visible()
        if seen is None:
            return stock(hidden_states, cache_params=cache_params, **kwargs)
        output = torch.zeros_like(hidden_states)
        caches = []
        for b, row in enumerate(seen.to(hidden_states.device)):
            cache = _state_of_row(config, cache_params, index, b)
            alone = stock(
                hidden_states[b, row][None],
                **{**kwargs, "attention_mask": None},
                cache_params=cache,
            )
            output[b, row] = alone[0]
            caches.append(cache)
        if cache_params is not None:
            windows = [cache.layers[index].conv_states[0] for cache in caches]
            memories = [cache.layers[index].recurrent_states[0] for cache in caches]
            cache_params.update_conv_state(torch.cat(windows), index)
            cache_params.update_recurrent_state(torch.cat(memories), index)
        return output

    module.forward = forward

    def remove() -> None:
        del module.forward

    return SimpleNamespace(remove=remove)


def _state_of_row(config: Any, cache: Any, index: int, row: int) -> DynamicCache:
    """A fresh cache that goes on where this row of the layer stands."""
    own = DynamicCache(config=config)
    window = None if cache is None else cache.layers[index].conv_states[0]
    if window is not None:
        own.update_conv_state(window[row : row + 1].clone(), index)
        memory = cache.layers[index].recurrent_states[0]
        own.update_recurrent_state(memory[row : row + 1].clone(), index)
    return own
