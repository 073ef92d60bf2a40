"""The reader: a trained Qwen2.5-VL in a folder of its own, and the method settings beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import erase
from erase.demo_assets import load_tokenizer
from erase.methods import ModelFacts

MODEL_TYPE = "qwen2_5_vl"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Either holds the weights or says where they are."""
METHOD = "method.json"
"""Settings of the method, as ``EraseConfig.to_json`` writes them."""


class ReaderError(ValueError):
    """The folder holds no model that the demo can let read."""


@dataclass(frozen=True)
class Reader:
    """A stock Qwen2.5-VL that was trained to read labels, and how it is pruned."""

    model: Any
    method: erase.EraseConfig


def check_reader(folder: Path, keep: float) -> erase.EraseConfig:
    """The stored settings with ``keep`` as final share, if the folder holds a reader.

    Configuration and settings are read, weights are not.

    Raises:
        ReaderError: it does not; the message says what was expected and what is there.
        ValueError: ``keep`` is not in (0, 1].
    """
    if not folder.is_dir():
        raise ReaderError(f"no such folder: {folder}")
    stored = _read_json(folder, "config.json", "a folder as save_pretrained() writes it")
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind != MODEL_TYPE:
        raise ReaderError(f"{folder}: expected model type {MODEL_TYPE!r}, got {kind!r}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ReaderError(f"{folder}: no weights; expected {' or '.join(WEIGHTS)}")
    layers = _check_config(folder)
    fields = _read_json(folder, METHOD, "the settings that EraseConfig.to_json() writes")
    try:
        method = erase.EraseConfig.from_json(json.dumps(fields))
        method.validate(ModelFacts(MODEL_TYPE, layers, tuple(range(layers))))
    except (ValueError, TypeError) as error:
        raise ReaderError(f"{folder / METHOD}: {error}") from error
    return method.replace(keep_ratio=keep)


def load_reader(folder: Path, method: erase.EraseConfig, device: torch.device) -> Reader:
    """The stored model in fp32 and eval mode, with the settings that ``check_reader`` gave.

    Raises:
        ReaderError: the weights cannot be read, or are not those of the configuration.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    try:
        with _no_progress_bar():
            model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # safetensors and transformers raise several kinds, some their own
        raise ReaderError(f"{folder}: the weights cannot be loaded: {error}") from error
    if absent := sorted(found["missing_keys"]):
        # transformers leaves random numbers in their place.
        raise ReaderError(f"{folder}: {len(absent)} weights are missing, the first is {absent[0]}")
    if extra := sorted(found["unexpected_keys"]):
        # Of a model with more layers, say, which would read with a part of itself.
        raise ReaderError(
            f"{folder}: {len(extra)} weights have no place in the model that config.json "
            f"describes, the first is {extra[0]}"
        )
    return Reader(model.eval().requires_grad_(False).to(device), method)


def _read_json(folder: Path, name: str, expected: str) -> Any:
    path = folder / name
    if not path.is_file():
        raise ReaderError(f"{folder}: no {name}; expected {expected}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReaderError(f"cannot read {path}: {error}") from error


def _check_config(folder: Path) -> int:
    """Decoder layers of the stored configuration; ReaderError for another tokenizer's."""
    from transformers import Qwen2_5_VLConfig

    try:
        config = Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ReaderError(f"{folder}: config.json: {error}") from error
    tokenizer = load_tokenizer()
    expected = (len(tokenizer), tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    got = (config.text_config.vocab_size, config.image_token_id)
    if got != expected:
        raise ReaderError(
            f"{folder}: expected a model for the demo's tokenizer (vocabulary {expected[0]}, image "
            f"token {expected[1]}), got vocabulary {got[0]}, image token {got[1]}"
        )
    return int(config.text_config.num_hidden_layers)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
