"""What is refused in every family: calls and models that pruning cannot get right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import StaticCache

import erase
from tests.families._base import TinyFamily
from tests.hf.cases import DESCRIBE
from tests.hf.subjects import stack_of
from tests.prompts import photo

ROOM = 512
"""Slots of a static cache here."""
Call = Callable[[TinyFamily, Any, erase.EraseConfig], None]


@dataclass(frozen=True, eq=False)
class Refusal:
    """One thing that is refused: ``call`` raises a ValueError whose message matches ``says``."""

    name: str
    says: str
    call: Call


def _inputs(family: TinyFamily) -> dict[str, Any]:
    return family.encode([[photo(5, 6), DESCRIBE]]).inputs


def _generate(**options: Any) -> Call:
    def call(family: TinyFamily, model: Any, config: erase.EraseConfig) -> None:
        with erase.prune(model, config) as session:
            try:
                model.generate(**_inputs(family), max_new_tokens=2, **options)
            finally:
                assert session.prefills_seen == 0

    return call


def _continuous_batching(family: TinyFamily, model: Any, config: erase.EraseConfig) -> None:
    with erase.prune(model, config):
        model.generate_batch([[1, 2, 3]])


def _without_pixels(family: TinyFamily, model: Any, config: erase.EraseConfig) -> None:
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    inputs = {k: v for k, v in _inputs(family).items() if k in names}
    with erase.prune(model, config):
        model(**inputs)


def _static_turns(family: TinyFamily, model: Any, config: erase.EraseConfig) -> None:
    """A prompt on a static cache that holds a pruned one."""
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=ROOM)
    other = family.build()
    with erase.prune(other, config):
        other(**_inputs(family), past_key_values=cache)
    with erase.prune(model, config):
        model(**_inputs(family), past_key_values=cache)


@contextmanager
def _described(model: Any, **fields: Any) -> Iterator[None]:
    """The model with other fields in the configuration of its text tower, and back again."""
    config = stack_of(model).config
    before = {name: vars(config)[name] for name in fields if name in vars(config)}
    vars(config).update(fields)
    try:
        yield
    finally:
        for name in fields:
            del vars(config)[name]
        vars(config).update(before)


def _model(**fields: Any) -> Call:
    def call(family: TinyFamily, model: Any, config: erase.EraseConfig) -> None:
        with _described(model, **fields):
            erase.prune(model, config).remove()

    return call


REFUSALS: tuple[Refusal, ...] = (
    Refusal("sliding-window layers", "sliding", _model(layer_types=["sliding_attention"] * 6)),
    Refusal("bidirectional attention", "bidirectional", _model(is_causal=False)),
    Refusal("cross-attention models", "cross-attention", _model(is_encoder_decoder=True)),
    Refusal("generate(use_cache=False)", "use_cache", _generate(use_cache=False)),
    Refusal("chunked prefill", "prefill_chunk_size", _generate(prefill_chunk_size=8)),
    Refusal("quantized caches", "quantized", _generate(cache_implementation="quantized")),
    Refusal("offloaded caches", "offloaded", _generate(cache_implementation="offloaded")),
    Refusal("paged caches", "paged", _generate(cache_implementation="paged")),
    Refusal("continuous batching", "continuous batching", _continuous_batching),
    Refusal("image tokens without pixels", "pixel_values", _without_pixels),
    Refusal("several turns on a static cache", "several turns on a StaticCache", _static_turns),
)
