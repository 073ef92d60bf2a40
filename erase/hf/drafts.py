"""Drafted tokens that come with a prompt, as assisted generation feeds them.

Decoding sees what the whole prefill kept, in every layer. Layers before the one that stage 2
follows do not know that yet, so there the drafted tokens must wait: they take a step of their own
on the pruned cache, within the same call of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from erase.hf.current import set_current_prefill
from erase.hf.deepstack import MASK_ARGUMENT, PLANES_ARGUMENT

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill

_TOKEN_AXIS = {"inputs_embeds": 1, "position_ids": -1, MASK_ARGUMENT: 1}
Arguments = dict[str, Any]


def split_drafts(arguments: Arguments, drafted: int) -> tuple[Arguments, Arguments]:
    """Arguments of the language model for the prompt, and for the drafted tokens behind it."""
    prompt, drafts = dict(arguments), dict(arguments)
    for name, axis in _TOKEN_AXIS.items():
        tensor = arguments.get(name)
        if tensor is not None:
            size = tensor.shape[axis] - drafted
            prompt[name] = tensor.narrow(axis, 0, size)
            drafts[name] = tensor.narrow(axis, size, drafted)
    mask = arguments.get("attention_mask")
    if mask is not None:  # drafts see the prompt, so theirs stays whole
        prompt["attention_mask"] = mask[:, : mask.shape[1] - drafted]
    for name in (MASK_ARGUMENT, PLANES_ARGUMENT):
        drafts.pop(name, None)
    return prompt, drafts


def append_step(output: Any, drafts: Arguments, prefill: Prefill) -> None:
    """Run the drafts' step, and put its hidden states behind the prompt's in ``output``."""
    set_current_prefill(None)  # a decode step like any other
    try:
        step = prefill.session.architecture.language_model(**drafts)
    finally:
        set_current_prefill(prefill)
    output.last_hidden_state = torch.cat([output.last_hidden_state, step.last_hidden_state], dim=1)
    if output.get("hidden_states") is not None:
        pairs = zip(output.hidden_states, step.hidden_states, strict=True)
        output.hidden_states = tuple(torch.cat(pair, dim=1) for pair in pairs)
