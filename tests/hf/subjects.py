"""The models that tests run on, and the images in their prompts."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import torch

from tests.families._base import TinyFamily
from tests.hf.flash import FLASH
from tests.models import shared_model
from tests.oracle_choices import picture_of, recovered_images
from tests.prompts import CLIP_MEAN, CLIP_STD, Prompt

Family = str | TinyFamily
"""Qwen2-VL and Qwen2.5-VL by their names, with the stock processor; others without one."""


def model_of(family: Family, attention: str = "sdpa", *dtypes: torch.dtype) -> Any:
    """The shared model, cast to ``dtypes`` in turn."""
    if isinstance(family, str):
        return shared_model(family, attention, *dtypes)
    if attention == FLASH:
        return _with_flash(family)
    return _cast(family, attention, dtypes) if dtypes else family.model(attention)


@functools.cache
def _with_flash(family: TinyFamily) -> Any:
    """Of its decoder only; without the package it can be chosen only after the model is built."""
    model = family.build()
    model.config.get_text_config()._attn_implementation = FLASH
    return model


@functools.cache
def _cast(family: TinyFamily, attention: str, dtypes: tuple[torch.dtype, ...]) -> Any:
    return functools.reduce(lambda model, dtype: model.to(dtype), dtypes, family.build(attention))


def stack_of(model: Any) -> Any:
    """The language model inside."""
    base = model.base_model
    return base.language_model if hasattr(base, "language_model") else base.text_model


def layer_kinds(model: Any) -> list[str]:
    """What each decoder layer mixes tokens with."""
    config = model.config.get_text_config()
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


def oracle_images(prompts: list[Prompt]) -> list[np.ndarray]:
    """uint8 truth of all turns; from the pixels where their dtype has lost some levels."""
    images = []
    for prompt in prompts:
        pixels = prompt.inputs.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.bfloat16:
            grids = prompt.inputs["image_grid_thw"]
            images += recovered_images(pixels, grids, CLIP_MEAN, CLIP_STD)
        else:
            images += prompt.images
    return images


def repeated(prompt: Prompt, model: Any, times: int) -> list[Any]:
    """The images of each row so often, as beams and samples repeat the rows."""
    left, out = list(prompt.images), []
    image_tokens = prompt.inputs["input_ids"] == model.config.image_token_id
    for count in image_tokens.sum(1).tolist():
        row: list[Any] = []
        while sum(len(picture_of(image).candidates) for image in row) < count:
            row.append(left.pop(0))
        out += row * times
    return out


def repeats_tiles(prompt: Prompt, model: Any) -> bool:
    """Older transformers repeat rows of pixels: of images cut into tiles, every tile by itself.

    Beams and samples then see tiles of one another.
    """
    arguments = inspect.signature(type(model.base_model).forward).parameters
    own = "_expand_inputs_for_generation" in vars(type(model))
    pixels = prompt.inputs["pixel_values"]
    tiles = pixels.ndim == 4 and len(pixels) > len(prompt.images)
    return tiles and not own and "mm_encoder_outputs" not in arguments
