"""What is supported, model type by model type, as far as the package itself knows it.

How each of them is tested, call by call, stands in docs/support.md.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoConfig

from erase.hf.families import FAMILIES, Family
from erase.methods import PRESETS

LINEAR_ATTENTION = "linear_attention"
"""In ``config.layer_types``: a recurrent layer, which has neither scores nor slots to evict."""


@dataclass(frozen=True)
class SupportedModel:
    """One model type that ``erase.prune`` accepts.

    Attributes:
        model_type: ``config.model_type``.
        family: name of the adapter.
        summary: what a visual token of it is, in a line.
        stage2: layers after which stage 2 may prune: all, or the full-attention ones of a hybrid.
        joins_tiles: the tiles of an image are ranked and counted as one image.
        videos: ``prune(..., videos=True)`` prunes videos too; else they pass through unpruned.
        videos_are_images: frames arrive as images, and are pruned like images in any case.
        released: ``query="released"`` follows published code.
        presets: names of the published settings, for ``EraseConfig.for_model``.
    """

    model_type: str
    family: str
    summary: str
    stage2: Literal["every layer", "full-attention layers"]
    joins_tiles: bool
    videos: bool
    videos_are_images: bool
    released: bool
    presets: tuple[str, ...]


def supported_models() -> list[SupportedModel]:
    """Every supported model type, sorted; ``supported_model_types()`` gives the bare names."""
    found = [_describe(family, kind) for family in FAMILIES for kind in family.model_types]
    return sorted(found, key=lambda model: model.model_type)


def _describe(family: Family, model_type: str) -> SupportedModel:
    return SupportedModel(
        model_type=model_type,
        family=type(family).__name__,
        summary=_summary(family),
        stage2="full-attention layers" if _is_hybrid(model_type) else "every layer",
        joins_tiles=family.joins_tiles,
        videos=family.prunes_video,
        videos_are_images=family.videos_are_images,
        released=family.released_skip is not None,
        presets=tuple(name for name, p in PRESETS.items() if p.model_type == model_type),
    )


def _summary(family: Family) -> str:
    """First sentence of the adapter's file."""
    text = inspect.getdoc(inspect.getmodule(type(family))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _is_hybrid(model_type: str) -> bool:
    """Whether the architecture mixes recurrent layers with attention."""
    config: Any = AutoConfig.for_model(model_type)
    return LINEAR_ATTENTION in (getattr(config.get_text_config(), "layer_types", None) or ())
