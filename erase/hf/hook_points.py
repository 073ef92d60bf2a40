"""What the integration needs of the installed transformers, checked before anything is changed.

Hooks on a method that was renamed would never run, and nothing would be pruned without a word. So
every name that the integration hooks, overrides or rewrites is looked up when a session opens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from erase.hf.wrappers import uncompiled

if TYPE_CHECKING:
    from erase.hf.architecture import Architecture

SUPPORTED_VERSIONS = ("5.16", "5.23")
"""Oldest and newest transformers that the tests run with."""

FORWARD_ARGUMENTS = {
    "base": ("input_ids", "inputs_embeds", "attention_mask", "past_key_values", "pixel_values"),
    "language_model": ("inputs_embeds", "attention_mask", "position_ids", "past_key_values"),
    "layer": ("attention_mask", "position_ids", "position_embeddings", "past_key_values"),
}
"""Arguments that hooks read or rewrite, by name."""

CACHE_METHODS = {
    "get_seq_length": ("layer_idx",),
    "get_mask_sizes": ("query_length", "layer_idx"),
    "crop": ("tokens_to_remove",),
    "reset": (),
    "batch_repeat_interleave": ("repeats",),
    "batch_select_indices": ("indices",),
    "reorder_cache": ("beam_idx",),
}
"""Methods of a cache that a pruned one overrides, and their arguments."""

LAYER_ATTRIBUTES = ("keys", "values", "is_initialized", "get_seq_length")
MASK_ARGUMENTS = ("q_length", "kv_length", "q_offset", "kv_offset", "attention_mask")
GENERATION_SETTINGS = ("use_cache", "prefill_chunk_size", "cache_implementation")


def missing(point: str) -> RuntimeError:
    """The error for a hook point that is not there; the caller raises it."""
    oldest, newest = SUPPORTED_VERSIONS
    return RuntimeError(
        f"transformers {transformers.__version__}: {point}; this version of erase-kernels "
        f"supports transformers {oldest} to {newest}"
    )


def check_hook_points(architecture: Architecture) -> None:
    """RuntimeError naming the first hook point that the model or transformers does not have."""
    for check in _CHECKS:
        check(architecture)


def _check_base(architecture: Architecture) -> None:
    base = architecture.base
    name = type(base).__name__
    _demand_arguments(f"{name}.get_image_features", base.get_image_features, ["pixel_values"])
    _demand_arguments(f"{name}.forward", type(base).forward, FORWARD_ARGUMENTS["base"])


def _check_language_model(architecture: Architecture) -> None:
    stack = architecture.language_model
    name = type(stack).__name__
    _demand_arguments(f"{name}.forward", type(stack).forward, FORWARD_ARGUMENTS["language_model"])
    if not isinstance(stack.layers, nn.ModuleList) or not len(stack.layers):
        raise missing(f"{name}.layers is no list of decoder layers")
    if not isinstance(getattr(stack, "norm", None), nn.Module):
        raise missing(f"{name} has no norm after its layers")


def _check_layers(architecture: Architecture) -> None:
    for cls in {type(uncompiled(layer)): None for layer in architecture.layers}:
        forward: Any = cls.forward
        _demand_arguments(f"{cls.__name__}.forward", forward, FORWARD_ARGUMENTS["layer"])
        first = list(inspect.signature(forward).parameters)[1]
        if first != "hidden_states":
            raise missing(f"{cls.__name__}.forward takes {first} first, not hidden_states")


def _check_attention(architecture: Architecture) -> None:
    modules = [getattr(uncompiled(layer), "self_attn", None) for layer in architecture.layers]
    classes = dict.fromkeys(type(module) for module in modules if module is not None)
    if not classes:
        raise missing("no decoder layer has a self_attn")
    name = architecture.text_config._attn_implementation
    for cls in classes:
        forward: Any = inspect.unwrap(cls.forward)
        used = forward.__code__.co_names
        registry = forward.__globals__.get("ALL_ATTENTION_FUNCTIONS")
        if registry is not ALL_ATTENTION_FUNCTIONS or "ALL_ATTENTION_FUNCTIONS" not in used:
            raise missing(f"{cls.__name__} does not call the attention registry")
        if name == "eager" and not any(n.endswith("eager_attention_forward") for n in used):
            raise missing(f"{cls.__name__} has no eager_attention_forward")


def _check_registries(architecture: Architecture) -> None:
    name = architecture.text_config._attn_implementation
    if name != "eager" and name not in ALL_ATTENTION_FUNCTIONS:
        raise missing(f"attention {name!r} is not in ALL_ATTENTION_FUNCTIONS")
    if not isinstance(getattr(ALL_ATTENTION_FUNCTIONS, "_local_mapping", None), dict):
        raise missing("ALL_ATTENTION_FUNCTIONS._local_mapping is no dict")
    if name not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise missing(f"attention {name!r} is not in ALL_MASK_ATTENTION_FUNCTIONS")
    _demand_arguments(
        f"the mask function of {name!r}", ALL_MASK_ATTENTION_FUNCTIONS[name], MASK_ARGUMENTS
    )


def _check_caches(architecture: Architecture) -> None:
    for name, arguments in CACHE_METHODS.items():
        method = getattr(DynamicCache, name, None)
        if method is None:
            raise missing(f"DynamicCache has no {name}")
        _demand_arguments(f"DynamicCache.{name}", method, arguments)
    layer = DynamicLayer()
    for name in LAYER_ATTRIBUTES:
        if not hasattr(layer, name):
            raise missing(f"DynamicLayer has no {name}")


def _check_generation(architecture: Architecture) -> None:
    """Settings that are refused must still have the names they are looked up by."""
    model = architecture.model
    if not hasattr(model, "generate"):
        return
    config = GenerationConfig()
    for name in GENERATION_SETTINGS:
        if not hasattr(config, name):
            raise missing(f"GenerationConfig has no {name}")
    if not hasattr(model, "init_continuous_batching"):
        raise missing(f"{type(model).__name__} has no init_continuous_batching")


def _demand_arguments(name: str, function: Any, arguments: Iterable[str]) -> None:
    parameters = inspect.signature(function).parameters
    for argument in arguments:
        if argument not in parameters:
            raise missing(f"{name} has no argument {argument}")


_CHECKS: tuple[Callable[[Architecture], None], ...] = (
    _check_base,
    _check_language_model,
    _check_layers,
    _check_attention,
    _check_registries,
    _check_caches,
    _check_generation,
)
