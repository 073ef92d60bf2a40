"""LLaVA-NeXT: any resolution, one token per patch, a newline token after each row of the grid."""

from __future__ import annotations

from erase.hf.families._anyres import AnyResolution
from erase.hf.families._tiles import CLIP


class LlavaNext(AnyResolution):
    """Adapter of ``LlavaNextForConditionalGeneration``."""

    model_types = ("llava_next",)
    pixel_mean = CLIP.mean
    pixel_std = CLIP.std
    pack_settings = ("vision_feature_select_strategy",)


FAMILY = LlavaNext()
