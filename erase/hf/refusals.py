"""What cannot be pruned right is refused before anything runs."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Container, Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import GenerationMixin

from erase.hf.architecture import Architecture
from erase.hf.cache import CACHE_REFUSALS, check_cache, physical_length
from erase.hf.current import assisted
from erase.hf.families import Family
from erase.hf.running import callers_of, is_call_of
from erase.hf.signals import PIXELS, Modality, entropies_in
from erase.hf.wrappers import unwrap
from erase.methods import Downsample, Method
from erase.transfer import download

IMAGE_TOKEN_TYPE = 1
"""Value of ``mm_token_type_ids`` at image tokens."""
VIDEO_TOKEN_TYPE = 2
"""And at video tokens."""

WITHOUT_PIXELS = (
    "{name}: the prompt has {kind} tokens but no pixels came with it, so it cannot be pruned; pass "
    "{name}"
)

PROTOCOL = tuple(name for name in vars(Method) if not name.startswith("_"))
"""Members of a pruning method."""

ASSISTED_OPTIONS = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
"""Settings of ``generate`` under which the first forward holds drafted tokens."""


def check_generate(model: Any, kwargs: dict[str, Any], videos: bool) -> int | None:
    """Refuse settings of ``generate`` under which pruning would be wrong or silent.

    With ``videos`` those are to be pruned too.

    Returns:
        The prompt's length where generation is assisted, else None.

    Raises:
        ValueError: names the setting.
    """
    given = kwargs.get("generation_config")

    def setting(name: str) -> Any:
        """As generate() merges them: None is filled from the next source."""
        own = getattr(model.generation_config, name, None)
        values = (kwargs.get(name), getattr(given, name, None), own)
        return next((value for value in values if value is not None), None)

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
    if implementation not in (None, "dynamic", "static"):
        reason = CACHE_REFUSALS.get(implementation, "only dynamic and static caches are supported")
        raise ValueError(f"cache_implementation: {implementation!r} is not supported: {reason}")
    check_cache(kwargs.get("past_key_values"))
    outputs = kwargs.get("mm_encoder_outputs") or {}
    for modality in ("image", "video") if videos else ("image",):
        if outputs.get(modality) is not None:
            check_encoded(outputs[modality], modality)
    if not any(setting(name) for name in ASSISTED_OPTIONS):
        return None
    # The mask covers the tokens of a cache too, input_ids need not.
    names = ("attention_mask", "inputs_embeds", "inputs", "input_ids")
    prompt = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    return None if prompt is None else int(prompt.shape[1])


def check_outer_generate(base: nn.Module, videos: bool) -> int | None:
    """``check_generate`` of the generate() that this thread is in with ``base`` inside its model.

    A session on a base model does not see the generate() of the model around it, only the forwards
    that it makes.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    for frame in callers_of(sys._getframe(1)):
        model = frame.f_locals.get("self") if frame.f_code is code else None
        if model is not None and unwrap(model.base_model) is base:
            call = frame.f_locals
            given = {name: call.get(name) for name in ("inputs", "assistant_model")}
            options = {**call["kwargs"], **given, "generation_config": call["generation_config"]}
            return check_generate(model, options, videos)
    return None


def check_hooks_ran(base: nn.Module, hooked: bool) -> None:
    """RuntimeError where the running forward of ``base`` has images, but was called past its hooks.

    That is ``base.forward(...)`` for ``base(...)``, or without ``hooked``, whether it still has the
    session's hooks. A forward that began before the session opened has no open prefill either.
    """
    if torch.compiler.is_compiling():
        return
    code, with_images = inspect.unwrap(type(base).forward).__code__, False
    for frame in callers_of(sys._getframe(1)):
        if frame.f_code is code and frame.f_locals.get("self") is base:
            names = ("pixel_values", "mm_encoder_outputs")
            values = [frame.f_locals.get(name) for name in names]
            with_images = values[0] is not None or bool((values[1] or {}).get("image"))
        elif hooked and is_call_of(base, frame):
            return
    if with_images:
        raise RuntimeError(
            f"{type(base).__name__}.forward was called past its hooks, so these images would not "
            "be pruned; call the module itself"
        )


PAST_HOOKS = "the decoder was called past its hooks; call modules, not their forward"
UNFINISHED = "it was interrupted, or somebody took the session's hooks away"


def complain(reason: str) -> None:
    """Warn that a prefill with images was not pruned, though no exception was raised."""
    warnings.warn(f"a prompt with images was not pruned: {reason}", stacklevel=3)


def check_encoded(encoder_output: Any, modality: str) -> None:
    """ValueError where encoded images or videos carry no entropies."""
    if entropies_in(encoder_output) is None:
        raise ValueError(
            f"mm_encoder_outputs: {modality} embeddings came without their pixels, so there are no "
            "entropies to prune by; pass the pixels, or encode them inside the session"
        )


def check_all_encoded(expected: Iterable[Modality], encoded: Container[Modality]) -> None:
    """RuntimeError where pixels came, but the model did not encode them where it is watched."""
    for modality in expected:
        if modality not in encoded:
            raise RuntimeError(
                f"stage 1: the {modality}s were never encoded through get_{modality}_features"
            )


def check_layers_seen(seen: int, layers: int) -> None:
    """RuntimeError where decoder layers ran past their hooks."""
    if seen != layers:
        raise RuntimeError(
            f"prefill: {layers - seen} of {layers} decoder layers ran without their hooks, so "
            "nothing was pruned right; was the prefill compiled?"
        )


def check_is_method(method: object) -> None:
    """TypeError unless ``method`` follows the pruning protocol."""
    if isinstance(method, Downsample):
        raise TypeError(
            "method: Downsample prunes no tokens, it makes images smaller: call its prepare() on "
            "the images, and the model on the result, without erase.prune"
        )
    if not isinstance(method, Method):
        got = type(method).__name__
        missing = [name for name in PROTOCOL if not hasattr(method, name)]
        lacks = f" without {', '.join(missing)}" if len(missing) < len(PROTOCOL) else ""
        raise TypeError(f"method: expected a pruning method such as EraseConfig, got {got}{lacks}")


def check_method(family: Family, method: Method) -> None:
    """ValueError where the method needs what the published code never defined for the family."""
    if "residual_queries" in method.needs and family.released_skip is None:
        raise ValueError(
            "query: 'released' follows the published code, which covers Qwen2-VL, Qwen2.5-VL and "
            f"Qwen3-VL only, not {'/'.join(family.model_types)}; use 'exact'"
        )


def check_videos(family: Family, videos: object) -> None:
    """TypeError/ValueError unless ``videos`` is a bool that the family can follow."""
    if not isinstance(videos, bool):
        raise TypeError(f"videos: expected a bool, got {type(videos).__name__}")
    if videos and not family.prunes_video:
        raise ValueError(
            f"videos: pruning videos is not supported for {'/'.join(family.model_types)}; "
            + ("frames are images there" if family.videos_are_images else "they pass through")
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


def check_images_have_pixels(
    architecture: Architecture, call: dict[str, Any], videos: bool
) -> None:
    """ValueError where a prompt has image tokens, but neither pixels nor encoded images came.

    With ``videos`` the same goes for video tokens.

    Embeddings that come without token ids and token types cannot be told from text.
    """
    ids = call.get("input_ids")
    tokens = ids if ids is not None else call.get("inputs_embeds")
    if tokens is None or tokens.shape[1] == 1:
        return  # before the token types, which compiled decode steps would be made anew for
    kinds = call.get("mm_token_type_ids")
    if assisted() and physical_length(call.get("past_key_values")):
        return  # a decode step, which must read nothing on the host
    if architecture.family.videos_use_image_tokens and _has_video(call):
        return
    wanted = {architecture.image_token_id: IMAGE_TOKEN_TYPE}
    if videos and architecture.video_token_id is not None:
        wanted[architecture.video_token_id] = VIDEO_TOKEN_TYPE
    found, types = (ids, wanted) if ids is not None else (kinds, wanted.values())
    if found is None:
        return
    last = found[:, -tokens.shape[1] :]
    hits = torch.stack([torch.eq(last, kind).any() for kind in types])
    if torch.compiler.is_compiling():
        # Compiled code cannot stop to look; it fails when it gets here.
        torch._assert_async(~hits.any(), WITHOUT_PIXELS.format(name="pixel_values", kind="image"))
        return
    for modality, hit in zip(PIXELS, download(hits), strict=False):
        if hit:
            refuse_without_pixels(modality)


def refuse_without_pixels(modality: Modality) -> NoReturn:
    """ValueError: a prompt has tokens of images or videos that never came."""
    raise ValueError(WITHOUT_PIXELS.format(name=PIXELS[modality], kind=modality))


def check_router_logits(call: dict[str, Any]) -> None:
    """ValueError where a model of experts would sum its load-balancing loss over pruned tokens."""
    options = {**call, **call.get("kwargs", {})}
    if options.get("output_router_logits") and options.get("attention_mask") is not None:
        raise ValueError(
            "output_router_logits: the load-balancing loss counts the rows of attention_mask in "
            "every layer, and pruned layers have fewer; turn it off, or pass no attention_mask"
        )


def _has_video(call: dict[str, Any]) -> bool:
    encoded = (call.get("mm_encoder_outputs") or {}).get("video")
    return encoded is not None or call.get("pixel_values_videos") is not None
