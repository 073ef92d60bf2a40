"""Further ways to call a model: search, samples, drafts, embeddings, recorded outputs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from transformers import CompileConfig

from tests.hf.calls import Outcome, family_of, generate_into, turns_whole_ids
from tests.hf.flash import flash_kernels
from tests.hf.static import STATIC
from tests.prompts import Prompt

COPIES = 2
"""Beams or samples of each row."""
DRAFTED = 3
"""Tokens drafted at a time."""
SEARCHED = 6


def beams(model: Any, prompts: list[Prompt]) -> Outcome:
    """Beam search that returns every beam; what the prefill said, and the scores of the beams."""
    out = Outcome()
    result = model.generate(
        **prompts[0].inputs,
        num_beams=COPIES,
        num_return_sequences=COPIES,
        do_sample=False,
        max_new_tokens=SEARCHED,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    out.add(result.logits[0])
    out.add(result.sequences_scores[:, None])
    out.tokens.append(result.sequences[:, -SEARCHED:])
    out.cache, out.generated = result.past_key_values, SEARCHED - 1
    return out


def samples(model: Any, prompts: list[Prompt]) -> Outcome:
    """Several samples of each row."""
    out = Outcome()
    torch.manual_seed(5)
    sampling = {"do_sample": True, "top_k": 20, "num_return_sequences": COPIES}
    generate_into(out, model, **sampling, **prompts[0].inputs)
    return out


@contextmanager
def _counted(model: Any, out: Outcome) -> Iterator[None]:
    """Counts the forwards of the vision-language model inside."""

    def count(*_: Any) -> None:
        out.forwards += 1

    handle = model.base_model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


def prompt_lookup(model: Any, prompts: list[Prompt]) -> Outcome:
    """Drafts are taken from the prompt."""
    out = Outcome()
    with _counted(model, out):
        generate_into(out, model, prompt_lookup_num_tokens=DRAFTED, **prompts[0].inputs)
    return out


@functools.cache
def draft_model(model: Any) -> Any:
    """The same weights in a model of its own, which nobody prunes."""
    draft = type(model)(copy.deepcopy(model.config)).to(model.device).eval()
    draft.load_state_dict(model.state_dict())
    draft.generation_config = copy.deepcopy(model.generation_config)
    return draft


def assisted(model: Any, prompts: list[Prompt]) -> Outcome:
    """Drafts come from another model."""
    out, draft = Outcome(), draft_model(model)
    draft.generation_config.num_assistant_tokens = DRAFTED  # it adapts
    with _counted(model, out):
        generate_into(out, model, assistant_model=draft, **prompts[0].inputs)
    return out


def parroted(script: torch.Tensor, model: Any, prompts: list[Prompt]) -> Outcome:
    """Assisted by a model that says what it was told to say, [1, tokens]."""
    out, draft, prompt = Outcome(), copy.copy(draft_model(model)), prompts[0].length

    def say(input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> Any:
        said = input_ids.shape[1] - prompt
        words = script[:, said : said + max_new_tokens].to(input_ids.device)
        sure = 50.0 * torch.nn.functional.one_hot(words, model.config.get_text_config().vocab_size)
        sequences = torch.cat([input_ids, words], dim=1)
        return SimpleNamespace(sequences=sequences, scores=sure.unbind(1), past_key_values=None)

    draft.generate = say
    draft.generation_config.num_assistant_tokens = DRAFTED
    with _counted(model, out):
        generate_into(out, model, assistant_model=draft, **prompts[0].inputs)
    return out


def static(model: Any, prompts: list[Prompt]) -> Outcome:
    """generate() makes a static cache."""
    out = Outcome()
    generate_into(out, model, **STATIC, **prompts[0].inputs)
    return out


def compiled(model: Any, prompts: list[Prompt]) -> Outcome:
    """The same with every decode step in one graph, as generate() does it on a GPU."""
    out, config = Outcome(), CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    options = {"cache_implementation": "static", "compile_config": config}
    generate_into(out, model, **options, **prompts[0].inputs)
    del model._compiled_call
    torch._dynamo.reset()
    return out


def flash(model: Any, prompts: list[Prompt]) -> Outcome:
    """Greedy turns with flash attention, in which torch stands in for the kernels."""
    with flash_kernels() as calls:
        out = turns_whole_ids(model, prompts)
    out.forwards = len(calls)
    return out


def without_mask(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) with neither a cache nor a mask."""
    out = Outcome()
    inputs = {k: v for k, v in prompts[0].inputs.items() if k != "attention_mask"}
    result = model(**inputs, use_cache=False)
    out.add(result.logits, list(range(prompts[0].length)))
    return out


def cached(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) as it is: all logits, and a cache."""
    out = Outcome()
    result = model(**prompts[0].inputs)
    out.add(result.logits, list(range(prompts[0].length)))
    out.cache = result.past_key_values
    return out


def embedded(model: Any, prompts: list[Prompt]) -> Outcome:
    """The same with embeddings instead of ids, and positions where they come from the ids."""
    out = Outcome()
    inputs = prompts[0].inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    extra = family_of(model).later_images(model, dict(inputs), prompts)
    embeddings = model.get_input_embeddings()(ids)
    result = model(inputs_embeds=embeddings, attention_mask=mask, **extra)
    out.add(result.logits, list(range(prompts[0].length)))
    out.cache = result.past_key_values
    return out


def recorded(model: Any, prompts: list[Prompt]) -> Outcome:
    """Hidden states and attentions of every layer beside the logits."""
    out = Outcome()
    asked = {"output_hidden_states": True, "output_attentions": True}
    result = model(**prompts[0].inputs, use_cache=False, **asked)
    out.add(result.logits, list(range(prompts[0].length)))
    out.recorded = (result.hidden_states, result.attentions)
    return out
