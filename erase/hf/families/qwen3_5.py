"""Qwen3.5 and Qwen3.5-MoE: full attention in some layers, a gated delta rule in the others.

One token = 2x2 patches of 16 pixels, M-RoPE positions. Nothing here is about the recurrent layers
(``erase/hf/recurrent.py``): they need no more than their names.
"""

from __future__ import annotations

from erase.hf.families._patches import PatchFamily


class Qwen35(PatchFamily):
    """Adapter of ``Qwen3_5ForConditionalGeneration`` and its mixture-of-experts sibling."""

    model_types = ("qwen3_5", "qwen3_5_moe")
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    prunes_video = True


FAMILY = Qwen35()
