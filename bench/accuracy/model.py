"""The reading model: a stock Qwen2.5-VL, small, and how it is built, stored and loaded."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erase.demo_assets import load_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
"""The committed weights, in the folder layout of transformers."""

HIDDEN = 128
TEXT_LAYERS = 8
TEXT_MLP = 3 * HIDDEN
VISION_BLOCKS = 4
VISION_MLP = 2 * HIDDEN
VISION_FULL_ATTENTION = [1, 3]
"""Every second block sees the whole image, the others windows of 112 pixels, as in the large
models (there one block of eight)."""
HEADS = 4
KEY_VALUE_HEADS = 2
ROTARY_SECTIONS = [4, 6, 6]
"""Channel pairs per position axis: half a head of 32, split as in the large models."""
ROTARY_BASE = 1000.0
"""Positions go to a few hundred here; 1e6, as in the large models, would waste most channels."""
MAX_POSITIONS = 4096

IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def build_model(seed: int) -> Any:
    """An untrained ``Qwen2_5_VLForConditionalGeneration`` in fp32, the same for the same seed."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration._from_config(_config()).float()
    _initialise(model, seed)
    return model


def load_model(folder: Path = WEIGHTS) -> Any:
    """The stored model in fp32 and eval mode.

    Raises:
        OSError: there is none in ``folder``.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def save_model(model: Any, folder: Path) -> None:
    """Weights rounded to fp16, configuration and tokenizer, as transformers stores them."""
    stored = copy.deepcopy(model).to("cpu", torch.float16)
    stored.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)


def _config() -> Any:
    from transformers import Qwen2_5_VLConfig

    tokenizer = load_tokenizer()
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": TEXT_MLP,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "max_position_embeddings": MAX_POSITIONS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROTARY_BASE,
                "mrope_section": ROTARY_SECTIONS,
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": VISION_BLOCKS,
            "hidden_size": HIDDEN,
            "intermediate_size": VISION_MLP,
            "num_heads": HEADS,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": VISION_FULL_ATTENTION,
            "out_hidden_size": HIDDEN,
        },
        tie_word_embeddings=False,
        **{field: tokenizer.convert_tokens_to_ids(token) for field, token in IDS.items()},
    )


def _initialise(model: nn.Module, seed: int) -> None:
    """Seeded weights that keep the variance of what flows through; norms stay at 1.

    What a block adds to the residual stream is scaled down by the root of how many there are.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in name else 1 / math.sqrt(weight[0].numel())
            if name.endswith(("o_proj.weight", "attn.proj.weight", "down_proj.weight")):
                blocks = VISION_BLOCKS if ".visual." in name else TEXT_LAYERS
                scale /= math.sqrt(2 * blocks)
            weight.data.normal_(0.0, scale, generator=generator)
        elif name.endswith("bias"):
            weight.data.zero_()
