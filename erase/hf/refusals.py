"""What cannot be pruned right is refused before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from erase.hf.architecture import Architecture
from erase.hf.cache import CACHE_REFUSALS, check_cache, physical_length
from erase.hf.signals import entropies_in

IMAGE_TOKEN_TYPE = 1
"""Value of ``mm_token_type_ids`` at image tokens."""


def check_generate(model: Any, kwargs: dict[str, Any]) -> None:
    """ValueError for settings of ``generate`` under which pruning would be wrong or silent."""
    config = kwargs.get("generation_config") or model.generation_config

    def setting(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(config, name, None)

    if setting("use_cache") is False:
        raise ValueError(
            "use_cache: generate(use_cache=False) is not supported: every step would prefill "
            "again and choose other tokens"
        )
    if setting("prefill_chunk_size") is not None:
        raise ValueError(
            "prefill_chunk_size: chunked prefill is not supported: a chunk does not see the "
            "whole image"
        )
    implementation = setting("cache_implementation")
    if implementation not in (None, "dynamic"):
        reason = CACHE_REFUSALS.get(implementation, "only the default dynamic cache is supported")
        raise ValueError(f"cache_implementation: {implementation!r} is not supported: {reason}")
    check_cache(kwargs.get("past_key_values"))
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        check_encoded(encoded)


def check_encoded(encoder_output: Any) -> None:
    """ValueError where encoded images carry no entropies."""
    if entropies_in(encoder_output) is None:
        raise ValueError(
            "mm_encoder_outputs: image embeddings came without their pixels, so there are no "
            "entropies to prune by; pass pixel_values, or encode them inside the session"
        )


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> Any:
    """Stands in for ``init_continuous_batching``, on which ``generate_batch`` is built."""
    raise ValueError(f"continuous batching is not supported: {CACHE_REFUSALS['paged']}")


def check_checkpointing(layers: nn.ModuleList) -> None:
    """ValueError where the backward pass would replay hooks that belong to the forward pass.

    Older transformers checkpoint a decoder layer's ``__call__``, hooks included; newer ones its
    ``forward``.
    """
    for layer in layers:
        checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
        if checkpointed and type(layer).__call__ is not nn.Module.__call__:
            raise ValueError(
                "model: gradient checkpointing of this transformers version replays hooks in the "
                "backward pass; upgrade transformers, or disable gradient checkpointing"
            )


def check_images_have_pixels(architecture: Architecture, call: dict[str, Any]) -> None:
    """ValueError where a prompt has image tokens, but neither pixels nor encoded images came."""
    ids = call.get("input_ids")
    if ids is None or ids.shape[1] == 1 or physical_length(call.get("past_key_values")):
        return
    if bool(torch.any(ids == architecture.image_token_id)):
        raise ValueError(
            "pixel_values: the prompt has image tokens but no pixels came with it, so it cannot "
            "be pruned; pass pixel_values"
        )
