"""Tiny stock Qwen2-VL and Qwen2.5-VL models of true architecture with seeded random weights.

The weights are scaled so that attention is far from uniform and pruned and unpruned logits differ
clearly, and no norm gain is 1 (a forgotten input norm must change the scores). Text depth 6; tests
prune after layer 1 or 3.
"""

from __future__ import annotations

import functools
import math

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from erase.demo_assets import load_tokenizer
from tests.hf.place import DEVICE

FAMILIES = ("qwen2_5_vl", "qwen2_vl")
TEXT_LAYERS = 6
EARLY_LAYER = 1
LATE_LAYER = 3

_HIDDEN = 64
_VISION_HIDDEN = 32
_ATTENTION_GAIN = 1.3
"""Standard deviation of a query or key channel: attention is far from uniform, and fp32 noise of
the logits stays below 1e-5."""


def special_ids() -> dict[str, int]:
    """Ids the model configuration needs, from the committed tokenizer."""
    tokenizer = load_tokenizer()
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def text_config(mrope: bool = True) -> dict:
    """Settings of a text tower: six layers, two key-value heads, vocabulary of the tokenizer."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if mrope:
        rope["mrope_section"] = [2, 3, 3]
    return {
        "vocab_size": len(load_tokenizer()),
        "hidden_size": _HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


def _vision_config(family: str) -> dict:
    common = {
        "depth": 2,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_5_vl":
        own = {
            "hidden_size": _VISION_HIDDEN,
            "intermediate_size": 64,
            "out_hidden_size": _HIDDEN,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        }
    else:
        own = {"embed_dim": _VISION_HIDDEN, "hidden_size": _HIDDEN, "mlp_ratio": 2}
    return {**common, **own}


def initialise(model: torch.nn.Module, seed: int) -> None:
    """Seeded weights: unit-gain linear layers, peaked attention, norm gains in [0.5, 1.5]."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            # Experts are stacked: [experts, out, in].
            fan_in = weight.shape[-1] if ".experts." in name else weight[0].numel()
            gain = _ATTENTION_GAIN if ".q_proj." in name or ".k_proj." in name else 1.0
            scale = 1.0 if "embed_tokens" in name else gain / math.sqrt(fan_in)
            weight.data.normal_(0.0, scale, generator=generator)
        elif "norm" in name or name.endswith("ln_q.weight"):
            weight.data.uniform_(0.5, 1.5, generator=generator)
        else:
            weight.data.normal_(0.0, 0.3, generator=generator)


def build_model(family: str, attention: str = "sdpa", seed: int = 7, **text_overrides):
    """A fresh fp32 model on the device in eval mode; greedily it never emits special tokens."""
    config_class, model_class = {
        "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    }[family]
    config = config_class(
        text_config={**text_config(), **text_overrides},
        vision_config=_vision_config(family),
        tie_word_embeddings=False,
        **special_ids(),
    )
    config._attn_implementation = attention
    model = model_class._from_config(config, attn_implementation=attention).float().eval()
    initialise(model, seed)
    special_count = max(special_ids().values()) + 1
    with torch.no_grad():
        model.lm_head.weight[:special_count] = 0.0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).to(DEVICE)


@functools.cache
def _cached_model(family: str, attention: str, dtypes: tuple[torch.dtype, ...]):
    model = build_model(family, attention)
    for dtype in dtypes:
        model = model.to(dtype)
    return model


def shared_model(family: str, attention: str = "sdpa", *dtypes: torch.dtype):
    """One model per family and attention for the whole run; tests leave it as they found it.

    It is cast to ``dtypes`` in turn: half precision and then fp32 gives the half model's weights.
    """
    return _cached_model(family, attention, dtypes)
