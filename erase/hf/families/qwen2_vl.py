"""Qwen2-VL and Qwen2.5-VL: one token = 2x2 patches of 14 pixels, M-RoPE positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from erase.hf.families._patches import PatchFamily, function_of_model_file


class Qwen2VL(PatchFamily):
    """Adapter of ``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``."""

    model_types = ("qwen2_vl", "qwen2_5_vl")
    # CLIP statistics, as in the family's preprocessor_config.json.
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    prunes_video = True
    # The default system prompt, the user header and <|vision_start|>.
    released_skip = 15

    def residual_query(
        self, attention: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``RoPE(W_q x + b)`` of the residual stream x that enters the layer, without its norm."""
        attention_: Any = attention
        batch, length, _ = hidden.shape
        query: Tensor = attention_.q_proj(hidden).view(batch, length, -1, attention_.head_dim)
        query = query.transpose(1, 2)
        cos, sin = position_embeddings
        rotated: Tensor
        rotate = function_of_model_file(attention, "apply_rotary_pos_emb")
        if rotate is not None:
            rotated, _ = rotate(query, query, cos, sin)
            return rotated
        # transformers < 5.20 interleaves the three position axes here instead of in the tables.
        sections = attention_.config.rope_parameters["mrope_section"]
        rotate = function_of_model_file(attention, "apply_multimodal_rotary_pos_emb")
        if rotate is None:
            raise RuntimeError("stage 2: the model file has no function for rotary embeddings")
        rotated, _ = rotate(query, query, cos, sin, sections)
        return rotated


FAMILY = Qwen2VL()
