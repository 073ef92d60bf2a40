"""Qwen3-VL, dense and mixture of experts: one token = 2x2 patches of 16 pixels, DeepStack."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from erase.hf.families._patches import PatchFamily, function_of_model_file


class Qwen3VL(PatchFamily):
    """Adapter of ``Qwen3VLForConditionalGeneration`` and its mixture of experts."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    # As in the family's preprocessor_config.json and video_preprocessor_config.json.
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    prunes_video = True
    # The user header and <|vision_start|>: there is no default system prompt.
    released_skip = 4
    released_from_output = True

    def residual_query(
        self, attention: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``RoPE(norm(W_q x))`` of the residual stream x that leaves the layer, DeepStack included.

        ``norm`` is the layer's norm of query heads; its input norm is not applied.
        """
        attention_: Any = attention
        batch, length, _ = hidden.shape
        query: Tensor = attention_.q_proj(hidden).view(batch, length, -1, attention_.head_dim)
        query = attention_.q_norm(query).transpose(1, 2)
        rotate = function_of_model_file(attention, "apply_rotary_pos_emb")
        if rotate is None:
            raise RuntimeError("stage 2: the model file has no function for rotary embeddings")
        cos, sin = position_embeddings
        rotated: Tensor
        rotated, _ = rotate(query, query, cos, sin)
        return rotated


FAMILY = Qwen3VL()
