"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: one token = 2x2 patches of 14 pixels, M-RoPE."""

from __future__ import annotations

from erase.hf.families._patches import PatchFamily


class Glm4V(PatchFamily):
    """Adapter of ``Glm4vForConditionalGeneration`` and its relatives, dense and MoE.

    Their prompts mark the frames of a video with the image token. A video passes through; with an
    image in the same call the models themselves refuse it.
    """

    model_types = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
    # CLIP statistics, as in the family's preprocessor_config.json.
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    videos_use_image_tokens = True


FAMILY = Glm4V()
