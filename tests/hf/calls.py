"""Ways to call a vision-language model, each returning what can be compared.

A call does not know whether the model is stock, pruned, or masked by the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.families import ALL
from tests.families._base import TinyFamily
from tests.hf.place import DEVICE
from tests.prompts import Prompt

NEW_TOKENS = 6
FORCED_TOKENS = (21, 300, 22)


@dataclass
class Outcome:
    """What one run of a case produced."""

    # On the CPU: [B, V], or [B, positions, V].
    logits: list[torch.Tensor] = field(default_factory=list)
    # Columns of 3-D logits; None for 2-D ones.
    positions: list[list[int] | None] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)  # generated ids of each turn
    cache: Any = None
    generated: int = 0  # columns of the last turn that decoding added to the cache
    loss: torch.Tensor | None = None
    text: str | None = None
    recorded: Any = None  # the model's output, where hidden states and attentions were asked for
    forwards: int = 0  # of the vision-language model, where they were counted

    def add(self, logits: torch.Tensor, positions: list[int] | None = None) -> None:
        self.logits.append(logits.detach().cpu().clone())
        self.positions.append(positions)


def family_of(model: Any) -> TinyFamily:
    """What the tests know about the model's family."""
    return next(family for family in ALL if family.name == model.config.model_type)


def generate_into(
    out: Outcome, model: Any, new_tokens: int = NEW_TOKENS, **kwargs: Any
) -> torch.Tensor:
    """One generate() call; returns the whole sequence."""
    options = {"do_sample": False, **kwargs}
    result = model.generate(
        **options, max_new_tokens=new_tokens, output_logits=True, return_dict_in_generate=True
    )
    for step in result.logits:
        out.add(step)
    out.tokens.append(result.sequences[:, -new_tokens:])
    out.cache, out.generated = result.past_key_values, new_tokens - 1
    return result.sequences


def greedy(model: Any, prompts: list[Prompt]) -> Outcome:
    out = Outcome()
    generate_into(out, model, **prompts[0].inputs)
    return out


def sampled(model: Any, prompts: list[Prompt]) -> Outcome:
    out = Outcome()
    torch.manual_seed(11)
    generate_into(out, model, do_sample=True, temperature=0.9, top_k=50, **prompts[0].inputs)
    return out


def _joined(prompts: list[Prompt], sequence: torch.Tensor, first: dict, latest: Prompt) -> dict:
    """Inputs of a later turn with the whole conversation in ``input_ids``."""
    ids = torch.cat([sequence, latest.inputs["input_ids"]], dim=1)
    own = latest.inputs["attention_mask"]
    answer = torch.ones_like(ids[:, first["attention_mask"].shape[1] : -own.shape[1]])
    mask = torch.cat([first["attention_mask"], answer, own], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


def _turns(model: Any, prompts: list[Prompt], whole_ids: bool) -> Outcome:
    """Greedy turns on one cache; a stock model needs positions given for images of a later turn."""
    out = Outcome()
    inputs = prompts[0].inputs
    sequence = generate_into(out, model, **inputs)
    for turn, prompt in enumerate(prompts[1:], start=2):
        joined = _joined(prompts, sequence, inputs, prompt)
        extra = {}
        if "pixel_values" in prompt.inputs:
            extra = family_of(model).later_images(model, joined, prompts[:turn])
        past = sequence.shape[1] - 1  # the last generated token is not in the cache yet
        call = dict(joined)
        if not whole_ids:
            call["input_ids"] = joined["input_ids"][:, past:]
        new = joined["input_ids"].shape[1] - past
        if "position_ids" in extra:
            extra["position_ids"] = extra["position_ids"][..., -new:]
        generate_into(out, model, past_key_values=out.cache, **call, **extra)
        answer = out.tokens[-1]
        sequence, inputs = torch.cat([joined["input_ids"], answer], dim=1), joined
    return out


def turns_whole_ids(model: Any, prompts: list[Prompt]) -> Outcome:
    return _turns(model, prompts, whole_ids=True)


def turns_new_ids(model: Any, prompts: list[Prompt]) -> Outcome:
    return _turns(model, prompts, whole_ids=False)


def direct(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) without a cache: logits of every position."""
    out = Outcome()
    result = model(**prompts[0].inputs, use_cache=False)
    assert result.past_key_values is None
    out.add(result.logits, list(range(prompts[0].length)))
    return out


def direct_loop(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) with a cache, then a hand-written greedy loop with mask and positions."""
    out = Outcome()
    inputs = prompts[0].inputs
    result = model(**inputs, use_cache=True)
    out.add(result.logits, list(range(prompts[0].length)))
    mask, tokens = inputs["attention_mask"], []
    for _ in range(NEW_TOKENS - 1):
        tokens.append(result.logits[:, -1].argmax(-1, keepdim=True))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        result = model(
            input_ids=tokens[-1],
            attention_mask=mask,
            past_key_values=result.past_key_values,
            **family_of(model).decode_positions(model, mask),
        )
        out.add(result.logits[:, -1])
    tokens.append(result.logits[:, -1].argmax(-1, keepdim=True))
    out.tokens.append(torch.cat(tokens, dim=1))
    out.cache, out.generated = result.past_key_values, NEW_TOKENS - 1
    return out


def direct_loop_without_mask(model: Any, prompts: list[Prompt]) -> Outcome:
    """The same loop with nothing but ids and cache."""
    out = Outcome()
    inputs = {k: v for k, v in prompts[0].inputs.items() if k != "attention_mask"}
    result = model(**inputs, use_cache=True)
    out.add(result.logits[:, -1])
    for _ in range(NEW_TOKENS - 1):
        token = result.logits[:, -1].argmax(-1, keepdim=True)
        result = model(input_ids=token, past_key_values=result.past_key_values)
        out.add(result.logits[:, -1])
    out.cache, out.generated = result.past_key_values, NEW_TOKENS - 1
    return out


def text_labels(prompt: Prompt, image_token: int) -> torch.Tensor:
    """Text only, without padding and without tokens predicted from padding or from an image."""
    ids = prompt.inputs["input_ids"]
    no_text = (ids == image_token) | (prompt.inputs["attention_mask"] == 0)
    after = torch.cat([torch.zeros_like(no_text[:, :1]), no_text[:, :-1]], dim=1)
    return ids.masked_fill(no_text | after, -100)


def direct_labels(model: Any, prompts: list[Prompt]) -> Outcome:
    out = Outcome()
    labels = text_labels(prompts[0], model.config.image_token_id)
    result = model(**prompts[0].inputs, labels=labels)
    out.add(result.logits, list(range(prompts[0].length)))
    out.loss, out.cache = result.loss, result.past_key_values
    return out


def keep_last_logits(model: Any, prompts: list[Prompt]) -> Outcome:
    out = Outcome()
    result = model(**prompts[0].inputs, logits_to_keep=3)
    out.add(result.logits, list(range(prompts[0].length - 3, prompts[0].length)))
    out.cache = result.past_key_values
    return out


def keep_chosen_logits(model: Any, prompts: list[Prompt]) -> Outcome:
    out = Outcome()
    chosen = [1, 4, prompts[0].length - 7, prompts[0].length - 1]
    result = model(**prompts[0].inputs, logits_to_keep=torch.tensor(chosen, device=DEVICE))
    out.add(result.logits, chosen)
    out.cache = result.past_key_values
    return out


def forced_loop(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) with a cache, then given tokens: what is fed does not depend on rounding."""
    out = Outcome()
    inputs = prompts[0].inputs
    result = model(**inputs, use_cache=True)
    out.add(result.logits, list(range(prompts[0].length)))
    mask = inputs["attention_mask"]
    for token in FORCED_TOKENS:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        result = model(
            input_ids=torch.full_like(mask[:, :1], token),
            attention_mask=mask,
            past_key_values=result.past_key_values,
            **family_of(model).decode_positions(model, mask),
        )
        out.add(result.logits[:, -1])
    out.cache, out.generated = result.past_key_values, len(FORCED_TOKENS)
    return out
