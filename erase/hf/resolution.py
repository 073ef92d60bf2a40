"""Whether images are resized as the preset in use assumes; entropies depend on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from erase.methods.presets import PixelBounds, Preset, Tiling, preset_name, preset_with

SMALLEST_TOKENS = 64
"""Lower bounds of fewer visual tokens count as equal: they say how images of a thumbnail's size
are treated, where pruning has next to nothing to save. Qwen3-VL's own processor starts here."""


class ResolutionWarning(UserWarning):
    """Images are not resized as the preset's thresholds assume."""


def check_resolution(method: Any, processor: Any | None) -> None:
    """ResolutionWarning where ``processor`` resizes unlike what the method's preset assumes.

    A method has a preset where its entropy thresholds are a preset's. Nothing is said without a
    processor, for thresholds of one's own, and for a processor with ``do_resize=False``, whose
    images were resized before. What is passed to a single processor call cannot be seen here.

    Call it from ``prune`` itself: the warning names the line two frames up.
    """
    preset = preset_with(getattr(method, "entropy_thresholds", ()))
    if processor is None or preset is None:
        return
    found = _resizing(processor)
    if found is None or _alike(found, preset):
        return
    name = preset_name(preset)
    warnings.warn(
        f"processor: the thresholds in use are those of {name}, tuned on images resized to "
        f"{preset.resolution}; here they are resized to {found}. Entropies depend on the "
        f"resolution, so other complexity levels and other tokens may be chosen (docs/presets.md). "
        f"{_remedy(processor, found, preset)}",
        ResolutionWarning,
        stacklevel=3,
    )


def _resizing(processor: Any) -> PixelBounds | Tiling | str | None:
    """What happens to an image; words for other ways, None where images stay as they come."""
    image_processor = getattr(processor, "image_processor", processor)
    settings = _defaults_of_calls(processor)

    def read(name: str) -> Any:
        return settings.get(name, getattr(image_processor, name, None))

    size = read("size")
    if read("max_patches") is not None and _edge(size, "height") == _edge(size, "width"):
        side = _edge(size, "height")
        if side is not None and read("crop_to_patches"):
            return Tiling(side, read("max_patches"), read("min_patches") or 1)
        if side is not None and read("do_resize"):
            return Tiling(side, 1)
    if read("do_resize") is False:
        return None
    least, most = _edge(size, "shortest_edge"), _edge(size, "longest_edge")
    if read("merge_size") is None or least is None or most is None:
        return f"what {type(image_processor).__name__} makes of size={_plain(size)}"
    frames = _counted_frames(image_processor)
    # Attributes of older code; calls prefer them to the size.
    least, most = read("min_pixels") or least, read("max_pixels") or most
    return PixelBounds(least // frames, most // frames)


def _defaults_of_calls(processor: Any) -> dict[str, Any]:
    """What the processor passes to its image processor at each call unless told otherwise."""
    # transformers < 5.20 keeps them in a class of keyword arguments.
    kinds = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    own = getattr(processor, "images_kwargs", None)
    return {**kinds.get("images_kwargs", {}), **(own if isinstance(own, Mapping) else {})}


def _edge(size: Any, name: str) -> int | None:
    value: int | None
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return value


def _plain(size: Any) -> Any:
    names = ("height", "width", "shortest_edge", "longest_edge", "min_pixels", "max_pixels")
    plain = {name: _edge(size, name) for name in names if _edge(size, name) is not None}
    return plain or size


def _counted_frames(image_processor: Any) -> int:
    """GLM's image processors bound the area times the frames that an image is repeated to."""
    glm = type(image_processor).__name__.startswith("Glm")
    return int(image_processor.temporal_patch_size) if glm else 1


def _alike(found: PixelBounds | Tiling | str, preset: Preset) -> bool:
    wanted = preset.resolution
    if not isinstance(found, PixelBounds) or not isinstance(wanted, PixelBounds):
        return found == wanted
    smallest = SMALLEST_TOKENS * preset.cell**2
    return found.max_pixels == wanted.max_pixels and max(found.min_pixels, smallest) == max(
        wanted.min_pixels, smallest
    )


def _remedy(processor: Any, found: PixelBounds | Tiling | str, preset: Preset) -> str:
    """Statements that make the processor resize so, where it can."""
    wanted, image_processor = preset.resolution, getattr(processor, "image_processor", processor)
    settings: dict[str, Any]
    if isinstance(wanted, PixelBounds) and isinstance(found, PixelBounds):
        frames = _counted_frames(image_processor)
        least, most = wanted.min_pixels * frames, wanted.max_pixels * frames
        settings = {"size": {"shortest_edge": least, "longest_edge": most}}
    elif isinstance(wanted, Tiling) and isinstance(found, Tiling):
        settings = {
            "size": {"height": wanted.side, "width": wanted.side},
            "crop_to_patches": True,
            "min_patches": wanted.min_tiles,
            "max_patches": wanted.max_tiles,
        }
    else:
        return (
            "This processor cannot resize so: tune entropy_thresholds= on its images, or filter "
            "erase.hf.resolution.ResolutionWarning"
        )
    where = "processor" if image_processor is processor else "processor.image_processor"
    return "To set it: " + "; ".join(f"{where}.{name} = {v!r}" for name, v in settings.items())
