"""Finds the parts of a model that hooks attach to, and refuses what cannot be pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from erase.hf.families import Family, find_family
from erase.hf.hook_points import missing
from erase.hf.recurrent import LINEAR_MODULE
from erase.hf.wrappers import uncompiled, unwrap
from erase.methods import ModelFacts


@dataclass(frozen=True)
class Architecture:
    """The parts of one model."""

    model: Any  # unwrapped; has generate() unless it is the base model itself
    base: Any  # the vision-language model: get_image_features and forward
    language_model: Any  # the decoder stack
    layers: nn.ModuleList
    family: Family
    facts: ModelFacts
    image_token_id: int
    video_token_id: int | None

    @property
    def text_config(self) -> Any:
        """Configuration of the decoder stack."""
        return self.language_model.config

    def attention(self, layer: int) -> nn.Module:
        """Self-attention module of a decoder layer."""
        decoder_layer: Any = uncompiled(self.layers[layer])
        attention: nn.Module = decoder_layer.self_attn
        return attention

    @property
    def recurrent(self) -> list[nn.Module]:
        """Modules of the linear-attention layers of a hybrid model."""
        modules = [getattr(uncompiled(layer), LINEAR_MODULE, None) for layer in self.layers]
        return [module for module in modules if module is not None]


def inspect_model(model: Any) -> Architecture:
    """The parts of ``model``, which may be wrapped (see ``unwrap``).

    Raises:
        TypeError: not a torch module with a Hugging Face config.
        ValueError: unsupported model type, or an architecture whose attention cannot be pruned.
        RuntimeError: the decoder stack is not built as the integration knows it.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model: expected a transformers vision-language model, got {type(model).__name__}"
        )
    config: Any = model.config
    family = find_family(config.model_type)
    base: Any = unwrap(getattr(model, "base_model", model))
    names = ("language_model", "text_model")
    found: Any = next((getattr(base, name) for name in names if hasattr(base, name)), None)
    stack: Any = unwrap(found)
    if stack is None or not hasattr(base, "get_image_features"):
        raise TypeError(
            f"model: {type(model).__name__} has no language_model and get_image_features; "
            "pass the vision-language model itself"
        )
    _refuse_attention(stack.config)
    if not hasattr(stack, "layers"):
        raise missing(f"{type(stack).__name__} has no layers")
    return Architecture(
        model=model,
        base=base,
        language_model=stack,
        layers=stack.layers,
        family=family,
        facts=ModelFacts(config.model_type, len(stack.layers), _attention_layers(stack.layers)),
        image_token_id=config.image_token_id,
        video_token_id=getattr(config, "video_token_id", None),
    )


def _attention_layers(layers: nn.ModuleList) -> tuple[int, ...]:
    """Layers that have a self-attention; linear ones of a hybrid have none."""
    return tuple(i for i, layer in enumerate(layers) if hasattr(uncompiled(layer), "self_attn"))


def _refuse_attention(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or [_kind_of_all_layers(config)])
    if "sliding_attention" in kinds or "chunked_attention" in kinds:
        raise ValueError(
            "model: sliding-window layers are not supported: a window counts cache slots, and "
            "pruning changes which tokens lie in it"
        )
    if not getattr(config, "is_causal", True):
        raise ValueError("model: bidirectional attention is not supported: pruning needs causality")
    if getattr(config, "is_encoder_decoder", False) or "cross_attention" in kinds:
        raise ValueError("model: cross-attention models keep no visual tokens in the decoder")


def _kind_of_all_layers(config: Any) -> str:
    """What a configuration that lists no layers says of all of them."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    chunked = getattr(config, "attention_chunk_size", None) is not None
    return "chunked_attention" if chunked else "full_attention"
