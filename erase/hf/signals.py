"""Pixel entropies, captured where pixels are encoded, and brought to the forward that uses them.

``get_image_features`` is the one function that sees ``pixel_values`` on every route: newer
transformers call it in generate(), before the forward, and hand its output over as
``mm_encoder_outputs``; older ones and direct calls run it inside the forward. The entropies
therefore travel as an entry of its output, and are also given to the open prefill.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from erase.hf.current import current_prefill
from erase_kernels import PixelLayout, patch_entropy_from_pixels

ENTROPY_KEY = "erase_entropy"
"""Entry of the encoder output: tuple of f32 [cells] per image."""
APPROXIMATE_KEY = "erase_approximate"
"""Entry beside it where bf16 pixels were recovered only approximately."""


def with_entropies(encode: Callable[..., Any], layout: PixelLayout) -> Callable[..., Any]:
    """``get_image_features`` that also computes each cell's entropy; same signature."""
    signature = inspect.signature(encode)

    @functools.wraps(encode)
    def get_image_features(*args: Any, **kwargs: Any) -> Any:
        pixels = signature.bind(*args, **kwargs).arguments["pixel_values"]
        # First, so that pixels that cannot be undone are refused before the encoder's work.
        entropy = patch_entropy_from_pixels(pixels, layout)
        output = encode(*args, **kwargs)
        if isinstance(output, tuple):  # return_dict=False: nothing to attach the entropies to
            return output
        sizes = [len(features) for features in output.pooler_output]
        if sum(sizes) != len(entropy):
            raise ValueError(
                f"pixel_values: {len(entropy)} cells were found, but the encoder made "
                f"{sum(sizes)} tokens; image_grid_thw does not describe these pixels"
            )
        output[ENTROPY_KEY] = torch.split(entropy, sizes)
        if pixels.dtype == torch.bfloat16:
            output[APPROXIMATE_KEY] = True
        prefill = current_prefill()
        if prefill is not None:
            prefill.receive(output)
        return output

    return get_image_features


def entropies_in(output: Any) -> tuple[Tensor, ...] | None:
    """The entropies that an encoder output carries, if any."""
    return output.get(ENTROPY_KEY) if isinstance(output, dict) else None
