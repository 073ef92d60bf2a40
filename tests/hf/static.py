"""What tests of static caches share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StaticCache

import erase
from tests.hf.calls import FORCED_TOKENS, Outcome
from tests.hf.cases import Case
from tests.prompts import Prompt, chat_processor

Inputs = dict[str, Any]
STATIC: Inputs = {"cache_implementation": "static", "disable_compile": True}
"""On a GPU generate() would compile decoding by itself."""


def new_cache(model: Any, tokens: int) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=tokens)


def session_of(model: Any, case: Case, **fields: Any) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**case.settings(**fields)), chat_processor())


def loop(model: Any, prompts: list[Prompt], cache: Any = None, style: str = "mask") -> Outcome:
    """model(...), then given tokens.

    ``style``: every step gets the whole mask, or none, or one that hides the first token fed.
    """
    out, inputs = Outcome(), prompts[0].inputs
    result = model(**inputs, past_key_values=cache, use_cache=True)
    out.add(result.logits, list(range(prompts[0].length)))
    mask = inputs["attention_mask"]
    for step, token in enumerate(FORCED_TOKENS):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        position = mask.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
        if style == "hole" and step == 1:
            mask[:, -2] = 0
        result = model(
            input_ids=torch.full_like(mask[:, :1], token),
            attention_mask=None if style == "none" else mask,
            position_ids=position[None].expand(3, -1, -1),
            past_key_values=result.past_key_values,
        )
        out.add(result.logits[:, -1])
    out.cache, out.generated = result.past_key_values, len(FORCED_TOKENS)
    return out


def positions(model: Any, inputs: Inputs) -> torch.Tensor:
    """A stock model cannot work out positions from a prebuilt mask."""
    made, model.model.rope_deltas = model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    return made
