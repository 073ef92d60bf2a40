"""The supported model families; adding one is adding a file and a line here."""

from erase.hf.families._protocol import Encoded, Family, Statistics, one_token_per_cell
from erase.hf.families.internvl import InternVL
from erase.hf.families.llava import Llava
from erase.hf.families.llava_next import LlavaNext
from erase.hf.families.llava_onevision import LlavaOnevision
from erase.hf.families.qwen2_vl import Qwen2VL
from erase.hf.families.qwen3_5 import Qwen35

FAMILIES: tuple[Family, ...] = (
    Qwen2VL(),
    Qwen35(),
    InternVL(),
    Llava(),
    LlavaNext(),
    LlavaOnevision(),
)


def supported_model_types() -> list[str]:
    """``config.model_type`` values that ``prune`` accepts, sorted."""
    return sorted(kind for family in FAMILIES for kind in family.model_types)


def find_family(model_type: str) -> Family:
    """The adapter of a model type; ValueError naming the supported ones."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise ValueError(
        f"model: model type {model_type!r} is not supported; "
        f"supported: {', '.join(supported_model_types())}"
    )


__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "Statistics",
    "find_family",
    "one_token_per_cell",
    "supported_model_types",
]
