"""Qwen2-VL and Qwen2.5-VL: one token = 2x2 patches of 14 pixels, M-RoPE positions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from erase_kernels import PixelLayout

MROPE_AXES = 3
"""Temporal, height and width position of a token."""


class Qwen2VL:
    """Adapter of ``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``."""

    model_types = ("qwen2_vl", "qwen2_5_vl")
    # CLIP statistics, as in the family's preprocessor_config.json.
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    # The default system prompt, the user header and <|vision_start|>.
    skipped_text_tokens = 15

    def pixel_layout(
        self, config: Any, mean: tuple[float, ...], std: tuple[float, ...], scale: float
    ) -> PixelLayout:
        """Rows of ``pixel_values`` are patches in merge order: ``merge²`` of them make a cell."""
        vision = config.vision_config
        return PixelLayout.qwen(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            mean=mean,
            std=std,
            scale=scale,
        )

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """M-RoPE positions ``[3, B, S]``.

        The text row of a ``[4, B, S]`` tensor is dropped: after pruning it has gaps, which the
        model would read as packed sequences.
        """
        if position_ids is None:
            steps = torch.arange(past, past + length, device=device)
            return steps.expand(MROPE_AXES, batch, length)
        if position_ids.ndim == 2:
            return position_ids.expand(MROPE_AXES, batch, length)
        return position_ids[-MROPE_AXES:].expand(MROPE_AXES, batch, length)

    def residual_query(
        self, attention: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``RoPE(W_q x + b)`` of the residual stream x that enters the layer, without its norm."""
        attention_: Any = attention
        batch, length, _ = hidden.shape
        query: Tensor = attention_.q_proj(hidden).view(batch, length, -1, attention_.head_dim)
        query = query.transpose(1, 2)
        cos, sin = position_embeddings
        module = inspect.unwrap(type(attention).forward).__globals__
        rotated: Tensor
        if "apply_rotary_pos_emb" in module:
            rotated, _ = module["apply_rotary_pos_emb"](query, query, cos, sin)
            return rotated
        # transformers < 5.20 interleaves the three position axes here instead of in the tables.
        sections = attention_.config.rope_parameters["mrope_section"]
        rotated, _ = module["apply_multimodal_rotary_pos_emb"](query, query, cos, sin, sections)
        return rotated
