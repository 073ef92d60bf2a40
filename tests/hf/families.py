"""Runs a tiny model of any family pruned and masked by the oracle, and compares the two."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import erase
from erase.hf import ownership, planning
from erase.hf.families import _tiles
from erase.transfer import download
from tests.families import TinyFamily
from tests.hf.calls import NEW_TOKENS, Outcome, _joined, direct, generate_into, greedy
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import (
    CLEAR_DIFFERENCE,
    Pruned,
    assert_cache,
    assert_outcomes,
    assert_reports,
    logit_differences,
    snapshot,
)
from tests.hf.operators import erase_ops
from tests.hf.watch import Watch
from tests.oracle import Oracle
from tests.prompts import Prompt, page, photo

NEXT_USER = "<|im_end|>\n<|im_start|>user\n"
Call = Callable[[Any, list[Prompt]], Outcome]


def run_pruned(
    family: TinyFamily,
    call: Call,
    prompts: list[Prompt],
    attention: str = "sdpa",
    processor: Any = None,
    **config: Any,
) -> Pruned:
    """A call under a session; the model is as before afterwards."""
    model = _used(family, attention)
    before = snapshot(model)
    session = erase.prune(model, erase.EraseConfig(**{**BASE_CONFIG, **config}), processor)
    with torch.no_grad(), session:
        outcome = call(model, prompts)
    assert snapshot(model) == before, "the session left something behind"
    seen, pruned = session.prefills_seen, session.prefills_pruned
    return Pruned(outcome, list(session.reports), seen, pruned, erase_ops([]))


@functools.cache
def _used(family: TinyFamily, attention: str) -> Any:
    """The shared model after a first call, in which transformers installs hooks of its own."""
    model = family.model(attention)
    with torch.no_grad():
        model(**one(family)[0].inputs)
    return model


def check(
    family: TinyFamily,
    call: Call,
    build: Callable[[], list[Prompt]],
    attention: str = "sdpa",
    processor: Any = None,
    **config: Any,
) -> Pruned:
    """The pruned call chooses and computes what the oracle does, and not what the stock model does.

    ``build`` makes the prompts anew for each run.
    """
    got = run_pruned(family, call, build(), attention, processor, **config)
    settings = erase.EraseConfig(**{**BASE_CONFIG, **config})
    prompts = build()
    pictures = [picture for prompt in prompts for picture in prompt.images]
    model = family.model("eager")
    with torch.no_grad(), Oracle(model, settings, pictures) as oracle:
        want = call(model, prompts)
    with torch.no_grad():
        stock = call(family.model(attention), build())
    assert not oracle.unused_images
    assert got.seen == got.pruned == len(oracle.turns)
    assert_reports(got.reports, oracle.turns, kv=got.outcome.cache is not None)
    assert_outcomes(got.outcome, want, oracle)
    assert_cache(got.outcome, oracle)
    assert max(logit_differences(got.outcome, stock, oracle)) > CLEAR_DIFFERENCE
    return got


def one(family: TinyFamily) -> list[Prompt]:
    """A prompt with two images."""
    return [family.encode([[photo(5, 6), " and ", page(3, 5), " What is the difference?"]])]


def ragged(family: TinyFamily) -> list[Prompt]:
    """Rows with one image, none, and two."""
    rows = [
        [photo(5, 6), "Describe the image."],
        ["How many people are in the picture?"],
        ["Compare: ", page(6, 4, seed=1), " and ", photo(3, 5, 10, 10), " briefly."],
    ]
    return [family.encode(rows)]


def conversation(family: TinyFamily) -> list[Prompt]:
    """An image, then another in a later turn, then text."""
    return [
        family.encode([[photo(5, 6), "Describe the image."]]),
        family.encode([["And this? ", page(4, 6), " Summarise."]], head=NEXT_USER),
        family.encode([["Thank you."]], head=NEXT_USER),
    ]


def turns(family: TinyFamily, whole_ids: bool) -> Call:
    """Greedy turns on one cache; ``whole_ids``: with the whole conversation in ``input_ids``."""

    def call(model: Any, prompts: list[Prompt]) -> Outcome:
        out = Outcome()
        inputs = prompts[0].inputs
        sequence = generate_into(out, model, **inputs)
        for number, prompt in enumerate(prompts[1:], start=2):
            joined = _joined(prompts, sequence, inputs, prompt)
            given = dict(joined)
            if not whole_ids:
                given["input_ids"] = joined["input_ids"][:, sequence.shape[1] - 1 :]
            if "pixel_values" in prompt.inputs:
                given |= family.later_images(model, joined, prompts[:number])
            generate_into(out, model, past_key_values=out.cache, **given)
            sequence = torch.cat([joined["input_ids"], out.tokens[-1]], dim=1)
            inputs = joined
        return out

    return call


def without_mask(model: Any, prompts: list[Prompt]) -> Outcome:
    """model(...) with neither mask nor cache."""
    prompts[0].inputs.pop("attention_mask")
    return direct(model, prompts)


def loop_without_mask(model: Any, prompts: list[Prompt]) -> Outcome:
    """A hand-written loop with nothing but ids, pixels and a cache; then two tokens at once."""
    out = Outcome()
    inputs = {k: v for k, v in prompts[0].inputs.items() if k != "attention_mask"}
    result = model(**inputs, use_cache=True)
    out.add(result.logits[:, -1])
    for width in (1,) * (NEW_TOKENS - 1) + (2,):
        token = result.logits[:, -1:].argmax(-1).expand(-1, width)
        result = model(input_ids=token, past_key_values=result.past_key_values)
        out.add(result.logits[:, -1])
    out.cache, out.generated = result.past_key_values, NEW_TOKENS + 1
    return out


def check_route(family: TinyFamily, route: str, attention: str) -> None:
    """One of the routes on which gaps in the positions might be read as packed sequences."""
    calls = {
        "greedy": (greedy, ragged),
        "no_mask_no_cache": (without_mask, one),
        "loop_without_mask": (loop_without_mask, one),
        "turns": (turns(family, whole_ids=True), conversation),
        "turns_new_ids": (turns(family, whole_ids=False), conversation),
    }
    call, prompts = calls[route]
    check(family, call, lambda: prompts(family), attention)


ROUTES = ("greedy", "no_mask_no_cache", "loop_without_mask", "turns", "turns_new_ids")


def count_calls(module: torch.nn.Module) -> list[int]:
    """A list that grows with every call of a module."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def check_pixels(
    family: TinyFamily, dtype: torch.dtype, processor: Any, exact_in_bfloat16: bool = False
) -> None:
    """Half-precision pixels give the exact entropies, or are reported as approximate."""
    prompt = one(family)[0]
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(dtype)
    got = run_pruned(family, greedy, [prompt], processor=processor, keep_ratio=None)
    exact = exact_in_bfloat16 or dtype != torch.bfloat16
    assert got.reports[0].approximate_pixels is not exact
    for image, picture in zip(got.reports[0].rows[0].images, prompt.images, strict=True):
        error = (image.entropy.cpu() - torch.from_numpy(picture.entropy)).abs().max()
        assert error == 0 if exact else error < BF16_ERROR


BF16_ERROR = 0.5
"""Levels that are off by one move some entropies of small cells by this much (nats) at most."""


def check_statistics_refused(family: TinyFamily, processor: Any, dtype: torch.dtype) -> None:
    """Pixels of another normalisation are refused before the encoder runs, and change nothing."""
    model = family.build()
    calls = count_calls(model.base_model.vision_tower)
    prompt = one(family)[0]
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(dtype)
    with erase.prune(model, erase.EraseConfig(**BASE_CONFIG), processor):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match="mean, std and scale"):
                call(**prompt.inputs)
    assert not calls
    with torch.no_grad():
        stock = family.model()(**prompt.inputs).logits
        assert torch.equal(model(**prompt.inputs).logits, stock)


def check_waits(family: TinyFamily, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill brings numbers to the host at most so often, and makes none into tensors itself."""
    copies: list[int] = []

    def counted(values: torch.Tensor) -> list[Any]:
        copies.append(values.numel())
        return download(values)

    for module in (planning, ownership, _tiles):
        monkeypatch.setattr(module, "download", counted)
    model = _used(family, "sdpa")
    config = erase.EraseConfig(**BASE_CONFIG)
    with torch.no_grad(), erase.prune(model, config), Watch() as watch:
        model(**one(family)[0].inputs)
    assert 1 <= len(copies) <= most
    assert watch.from_host == {}, "on an accelerator each of these waits for it"
