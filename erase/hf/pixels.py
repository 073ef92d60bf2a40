"""How a processor turned an image into ``pixel_values``: what is needed to undo it exactly."""

from __future__ import annotations

from typing import Any

from erase.hf.architecture import Architecture
from erase.hf.families import Statistics


def statistics_for(
    architecture: Architecture, processor: Any | None, part: str = "image_processor"
) -> Statistics:
    """Normalisation of the model's ``pixel_values``.

    Args:
        architecture: of the model.
        processor: the processor or image processor in use; None assumes the family's usual one.
        part: the attribute of a processor that makes the pixels: ``video_processor`` for those of
            videos. What has none is taken as the processor of these pixels itself.

    Raises:
        TypeError: ``processor`` has no image normalisation settings.
        ValueError: its patch sizes are not the model's.
    """
    family = architecture.family
    if processor is None:
        return family.usual_statistics(architecture.base.config)
    image_processor = getattr(processor, part, None)
    if image_processor is None:  # one processor makes both kinds of pixels
        image_processor = getattr(processor, "image_processor", processor)
    if not hasattr(image_processor, "do_normalize"):
        raise TypeError(
            "processor: expected a processor or image processor with do_normalize, image_mean "
            f"and image_std, got {type(processor).__name__}"
        )
    family.check_processor(image_processor, architecture.base.config)
    return _statistics(image_processor, len(family.pixel_mean))


def _statistics(image_processor: Any, channels: int) -> Statistics:
    scale = 1.0
    if image_processor.do_rescale:
        # 1 / (1 / 255) is 255 only after rounding to the fp32 in which pixels are recovered.
        scale = round(1.0 / float(image_processor.rescale_factor), 6)
    if not image_processor.do_normalize:
        return Statistics((0.0,) * channels, (1.0,) * channels, scale)
    mean, std = image_processor.image_mean, image_processor.image_std
    return Statistics(tuple(map(float, mean)), tuple(map(float, std)), scale)
