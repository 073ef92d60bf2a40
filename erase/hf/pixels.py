"""How a processor turned an image into ``pixel_values``: what is needed to undo it exactly."""

from __future__ import annotations

from typing import Any

from erase.hf.architecture import Architecture
from erase_kernels import PixelLayout

UINT8_SCALE = 255.0
"""Processors map levels 0..255 to 0..1 unless ``do_rescale`` is off or the factor is changed."""


def layout_for(architecture: Architecture, processor: Any | None) -> PixelLayout:
    """Layout and normalisation of the model's ``pixel_values``.

    Args:
        architecture: of the model.
        processor: the processor or image processor in use; None assumes the family's usual one.

    Raises:
        TypeError: ``processor`` has no image normalisation settings.
        ValueError: its patch sizes are not the model's.
    """
    family, config = architecture.family, architecture.model.config
    mean, std, scale = family.pixel_mean, family.pixel_std, UINT8_SCALE
    if processor is not None:
        image_processor = getattr(processor, "image_processor", processor)
        if not hasattr(image_processor, "do_normalize"):
            raise TypeError(
                "processor: expected a processor or image processor with do_normalize, image_mean "
                f"and image_std, got {type(processor).__name__}"
            )
        mean, std, scale = _statistics(image_processor, len(mean))
        _check_patches(image_processor, config.vision_config)
    return family.pixel_layout(config, mean, std, scale)


def _statistics(
    image_processor: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    scale = 1.0
    if image_processor.do_rescale:
        # 1 / (1 / 255) is 255 only after rounding to the fp32 in which pixels are recovered.
        scale = round(1.0 / float(image_processor.rescale_factor), 6)
    if not image_processor.do_normalize:
        return (0.0,) * channels, (1.0,) * channels, scale
    mean, std = image_processor.image_mean, image_processor.image_std
    return tuple(map(float, mean)), tuple(map(float, std)), scale


def _check_patches(image_processor: Any, vision: Any) -> None:
    pairs = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, expected in pairs.items():
        got = getattr(image_processor, name, expected)
        if got != expected:
            raise ValueError(f"processor: {name} is {got}, but the model's is {expected}")
