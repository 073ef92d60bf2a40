"""LLaVA-OneVision: any resolution, grids of too many patches are shrunk."""

from __future__ import annotations

from erase.hf.families._anyres import AnyResolution
from erase.hf.families._tiles import HALF


class LlavaOnevision(AnyResolution):
    """Adapter of ``LlavaOnevisionForConditionalGeneration``.

    Where the model shrinks a grid bilinearly, a token's entropy is by definition the same bilinear
    blend of the entropies of its cells (of up to four), worked out in float64 and rounded to
    multiples of 2**-30 nats, then to fp32.
    Images of a prompt with several are one tile each. Videos pass through: a token of theirs is
    pooled out of cells.
    """

    model_types = ("llava_onevision",)
    pixel_mean = HALF.mean
    pixel_std = HALF.std
    pack_settings = ("vision_aspect_ratio",)


FAMILY = LlavaOnevision()
