"""A small Qwen2.5-VL: the stock classes and the real layout of layers, with random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from erase.demo_assets import load_tokenizer

TEXT_LAYERS = 28
"""As Qwen2.5-VL-7B, so that its pruning layers, 1 and 16, mean the same here."""
HIDDEN = 256
HEADS = 4
KEY_VALUE_HEADS = 2
ROTARY_SECTIONS = [8, 12, 12]
"""Channel pairs per position axis: half a head, split 1 : 1.5 : 1.5 as in the real model."""
VISION_BLOCKS = 4
VISION_FULL_ATTENTION = [1, 3]
"""Every second block sees the whole image, the others windows of 112 pixels."""
VISION_HIDDEN = 64
ATTENTION_GAIN = 1.3
"""Standard deviation of a query or key channel: attention then clearly prefers some tokens."""


def build_model(seed: int, device: torch.device) -> Any:
    """``Qwen2_5_VLForConditionalGeneration`` in fp32 and eval mode, the same for the same seed."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration._from_config(_config()).float().eval()
    _initialise(model, seed)
    model.generation_config.pad_token_id = load_tokenizer().pad_token_id
    return model.requires_grad_(False).to(device)


def _config() -> Any:
    from transformers import Qwen2_5_VLConfig

    tokenizer = load_tokenizer()
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": ROTARY_SECTIONS,
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": VISION_BLOCKS,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": VISION_FULL_ATTENTION,
            "out_hidden_size": HIDDEN,
        },
        tie_word_embeddings=False,
        **{field: tokenizer.convert_tokens_to_ids(token) for field, token in ids.items()},
    )


def _initialise(model: nn.Module, seed: int) -> None:
    """Seeded weights that keep the variance of what flows through; norms stay at 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = weight[0].numel()
            gain = ATTENTION_GAIN if ".q_proj." in name or ".k_proj." in name else 1.0
            scale = 1.0 if "embed_tokens" in name else gain / math.sqrt(fan_in)
            weight.data.normal_(0.0, scale, generator=generator)
        elif name.endswith("bias"):
            weight.data.zero_()
