"""Call styles that every family must have: the columns of the test matrix and of docs/support.md.

A style is prompts and a call; everything that is special to a family comes from its ``TinyFamily``.
Adding one is adding a line to ``STYLES``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.families._base import TinyFamily
from tests.hf.calls import (
    Outcome,
    direct,
    direct_labels,
    direct_loop,
    direct_loop_without_mask,
    greedy,
    keep_chosen_logits,
    keep_last_logits,
    sampled,
    turns_new_ids,
    turns_whole_ids,
)
from tests.hf.cases import DESCRIBE, NEXT_USER, Case, ragged_rows, right_padded
from tests.hf.flash import FLASH
from tests.hf.more_calls import (
    COPIES,
    assisted,
    beams,
    cached,
    compiled,
    embedded,
    flash,
    prompt_lookup,
    recorded,
    samples,
    static,
    without_mask,
)
from tests.prompts import Prompt, page, photo

Build = Callable[[TinyFamily], list[Prompt]]
Call = Callable[[Any, list[Prompt]], Outcome]


@dataclass(frozen=True, eq=False)
class Style:
    """One call style.

    Attributes:
        name: heading of its column.
        meaning: what the page says of it.
        build: makes the prompts.
        call: runs a model on them.
        reference: what the oracle is asked instead: another way to the same result.
        times: rows of the model for each row of the prompt.
        ragged: rows must prune at the early layer and at the late one, and one not at all.
        drafts: the prefill holds drafted tokens.
        turns: how many prefills bring images.
        attention: implementation of the model.
        compiled: the call compiles.
    """

    name: str
    meaning: str
    build: Build
    call: Call
    reference: Call | None = None
    times: int = 1
    ragged: bool = False
    drafts: bool = False
    turns: int = 1
    attention: str = "sdpa"
    compiled: bool = False


@functools.cache
def case_of(style: Style, family: TinyFamily) -> Case:
    """The style as a case of one family; one object, by which runs are shared."""
    return Case(
        style.name,
        functools.partial(style.build, family),
        style.call,
        layers=(),
        config=dict(family.settings),
        reference=style.reference,
        times=style.times,
        compiled=style.compiled,
    )


def _photo(family: TinyFamily) -> list[Prompt]:
    return [family.encode([[photo(5, 6), DESCRIBE]])]


def _images(family: TinyFamily) -> list[Prompt]:
    return [family.encode([["Compare: ", page(6, 7), " and ", photo(4, 5), DESCRIBE]])]


def _two_rows(family: TinyFamily) -> list[Prompt]:
    rows = [[photo(5, 6), DESCRIBE], [page(6, 7), "Read the page, please."]]
    return [family.encode(rows)]


def _ragged(family: TinyFamily) -> list[Prompt]:
    return [family.encode(ragged_rows())]


def _right_padded(family: TinyFamily) -> list[Prompt]:
    return [right_padded(family.encode(ragged_rows()))]


def _repeating(family: TinyFamily) -> list[Prompt]:
    return [family.encode([[photo(5, 6), "one two three one two three one two three one two"]])]


def _turn(family: TinyFamily, *parts: Any) -> Prompt:
    return family.encode([list(parts)], head=NEXT_USER)


def _text_turns(family: TinyFamily) -> list[Prompt]:
    later = ("Is the sky blue or grey?", "Thank you.")
    return [*_photo(family), *(_turn(family, text) for text in later)]


def _image_turns(family: TinyFamily) -> list[Prompt]:
    second = _turn(family, "And this? ", page(6, 7), " Summarise.")
    return [*_photo(family), second, _turn(family, "Thank you.")]


def _text_rows(family: TinyFamily) -> list[Prompt]:
    return [family.encode([["Hello there."], ["Who speaks at the end?"]])]


def _image_after_text(family: TinyFamily) -> list[Prompt]:
    return [family.encode([["Hello there."]]), _turn(family, photo(5, 6), DESCRIBE)]


STYLES: tuple[Style, ...] = (
    Style("greedy", "`generate(do_sample=False)`, one image", _photo, greedy),
    Style("sampling", "`generate(do_sample=True)`", _photo, sampled),
    Style(
        "beam search",
        "`generate(num_beams=2, num_return_sequences=2)`, two rows",
        _two_rows,
        beams,
        times=COPIES,
    ),
    Style(
        "several samples",
        "`generate(num_return_sequences=2)` with sampling, two rows",
        _two_rows,
        samples,
        times=COPIES,
    ),
    Style(
        "prompt lookup",
        "`generate(prompt_lookup_num_tokens=3)`: the tokens are those of greedy decoding",
        _repeating,
        prompt_lookup,
        reference=greedy,
        drafts=True,
    ),
    Style(
        "draft model",
        "`generate(assistant_model=)`: the tokens are those of greedy decoding",
        _photo,
        assisted,
        reference=greedy,
        drafts=True,
    ),
    Style("images", "several images in a row", _images, greedy),
    Style(
        "ragged",
        "left-padded batch: rows with one, two and no image, pruned at different layers",
        _ragged,
        greedy,
        ragged=True,
    ),
    Style("text turns", "later turns without an image, whole ids", _text_turns, turns_whole_ids),
    Style(
        "image turns",
        "a later turn with an image, whole ids",
        _image_turns,
        turns_whole_ids,
        turns=2,
    ),
    Style(
        "new ids",
        "a later turn with an image, only its own ids beside the cache",
        _image_turns,
        turns_new_ids,
        turns=2,
    ),
    Style("late image", "a first turn of text, then an image", _image_after_text, turns_whole_ids),
    Style(
        "static cache",
        '`generate(cache_implementation="static")`, rows of different lengths',
        _ragged,
        static,
        reference=greedy,
        ragged=True,
    ),
    Style(
        "compiled",
        "the same with decoding compiled into one graph",
        _ragged,
        compiled,
        reference=greedy,
        ragged=True,
        compiled=True,
    ),
    Style(
        "flash",
        '`attn_implementation="flash_attention_2"`, torch in place of its kernels, a ragged batch',
        _ragged,
        flash,
        reference=turns_whole_ids,
        ragged=True,
        attention=FLASH,
    ),
    Style(
        "flash turns",
        "the same with one row and an image in a later turn",
        _image_turns,
        flash,
        reference=turns_whole_ids,
        turns=2,
        attention=FLASH,
    ),
    Style("no cache", "`model(...)` with neither cache nor mask", _photo, without_mask),
    Style(
        "right padding", "`model(...)`, padded as for training", _right_padded, direct, ragged=True
    ),
    Style("labels", "`model(..., labels=)`: logits and loss", _ragged, direct_labels, ragged=True),
    Style("last logits", "`model(..., logits_to_keep=3)`", _photo, keep_last_logits),
    Style("chosen logits", "`model(..., logits_to_keep=columns)`", _photo, keep_chosen_logits),
    Style(
        "loop",
        "decoding by hand, with mask and positions",
        _ragged,
        direct_loop,
        ragged=True,
    ),
    Style("bare loop", "decoding by hand, ids and cache only", _photo, direct_loop_without_mask),
    Style(
        "embeddings",
        "`model(inputs_embeds=)` instead of ids",
        _two_rows,
        embedded,
        reference=cached,
    ),
    Style(
        "outputs",
        "`output_hidden_states`, `output_attentions`, with eager attention",
        _photo,
        recorded,
        attention="eager",
    ),
)

TEXT_ONLY = Style("text only", "prompts without images: the same bits", _text_rows, greedy)
TRAINED = Style("training", "loss and gradients of a step", _ragged, direct_labels, ragged=True)

COLUMNS: dict[str, str] = {
    **{style.name: style.meaning for style in STYLES},
    TEXT_ONLY.name: TEXT_ONLY.meaning,
    "any layer": "stage 2 after each decoder layer in turn",
    "one stage": "stage 1 alone, and stage 2 alone",
    "training": "a training step: loss and gradients are those of the masked model",
    "checkpointing": "the same with gradient checkpointing",
}
"""Every column of the table, and what it means."""

_MIXED = "transformers itself mixes up the tiles of images that are cut into several"
OLDER: dict[str, str] = {
    "beam search": _MIXED,
    "several samples": _MIXED,
    "checkpointing": "refused, for transformers replays the hooks of a layer in the backward pass",
}
"""Columns that older transformers cannot have, or not in every family."""
IN_OLDER = "not in older transformers"
"""What is recorded of them there."""
