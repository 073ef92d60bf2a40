"""Real shapes by name: what models and images give the operators."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape some real model or image gives an operator.

    Attributes:
        operator: public function.
        name: unique within the operator.
        sizes: arguments of the operator's input factory.
        source: where the shape comes from.
    """

    operator: str
    name: str
    sizes: dict[str, Any]
    source: str


CASES: list[Case] = [
    Case(
        "patch_entropy",
        "one_cell",
        {"height": 28, "width": 28, "patch_size": 28},
        "smallest image of the Qwen2-VL processor",
    ),
    Case(
        "patch_entropy",
        "photo_4096",
        {"height": 1792, "width": 1792, "patch_size": 28},
        "4 096 visual tokens of Qwen2.5-VL, about a 3-megapixel photograph",
    ),
    Case(
        "patch_entropy",
        "page_16384",
        {"height": 3584, "width": 3584, "patch_size": 28},
        "16 384 visual tokens, the limit of the published evaluation of Qwen2.5-VL",
    ),
    Case(
        "patch_entropy",
        "qwen3_page",
        {"height": 1408, "width": 992, "patch_size": 32},
        "an A4 page at 120 dpi in Qwen3-VL's 32-pixel cells",
    ),
    Case(
        "patch_entropy",
        "image_1k",
        {"height": 1008, "width": 1008, "patch_size": 28},
        "1 296 visual tokens: 1 024 pixels square as Qwen2.5-VL's processor resizes it",
    ),
    Case(
        "patch_entropy",
        "image_2k",
        {"height": 2044, "width": 2044, "patch_size": 28},
        "5 329 visual tokens: 2 048 pixels square, likewise",
    ),
    Case(
        "patch_entropy",
        "llava_576",
        {"height": 336, "width": 336, "patch_size": 14},
        "the one image size of LLaVA-1.5",
    ),
    Case(
        "patch_entropy",
        "eight_1024",
        {"height": 896, "width": 896, "patch_size": 28, "images": 8},
        "a batch of eight prompts, one image of 1 024 visual tokens each",
    ),
    Case(
        "patch_entropy_from_pixels",
        "photo_4096",
        {"height": 1792, "width": 1792, "layout": "qwen"},
        "the photograph above as Qwen2.5-VL's processor hands it over",
    ),
    Case(
        "patch_entropy_from_pixels",
        "tiles_12",
        {"height": 1344, "width": 1792, "layout": "tiles"},
        "twelve 448-pixel tiles of InternVL",
    ),
    Case(
        "patch_entropy_from_pixels",
        "page_16384",
        {"height": 3584, "width": 3584, "layout": "qwen"},
        "the page above as Qwen2.5-VL's processor hands it over",
    ),
    Case(
        "patch_entropy_from_pixels",
        "internvl_3328",
        {"height": 13 * 448, "width": 448, "layout": "tiles"},
        "InternVL3: twelve tiles and the thumbnail, 256 tokens each",
    ),
    Case(
        "patch_entropy_from_pixels",
        "llava_576",
        {"height": 336, "width": 336, "layout": "tiles", "tile": 336, "cell": 14},
        "LLaVA-1.5",
    ),
    Case(
        "complexity_plan",
        "photo_4096",
        {"images": 1, "cells": 4096, "ratio": 0.15},
        "the photograph above; 15% kept, as in the paper's main table",
    ),
    Case(
        "complexity_plan",
        "page_16384",
        {"images": 1, "cells": 16384, "ratio": 0.15},
        "the page above",
    ),
    Case(
        "complexity_plan",
        "eight_1280",
        {"images": 8, "cells": 1280, "ratio": 0.15},
        "eight images of the least size of the published evaluation",
    ),
    Case(
        "complexity_plan",
        "sixty_four_1024",
        {"images": 64, "cells": 1024, "ratio": 0.15},
        "sixty-four small images, of a batch or of a long document",
    ),
    Case(
        "complexity_plan",
        "internvl_3328",
        {"images": 1, "cells": 3328, "ratio": 0.15},
        "InternVL3, twelve tiles and the thumbnail",
    ),
    Case(
        "complexity_plan",
        "llava_576",
        {"images": 1, "cells": 576, "ratio": 0.15},
        "LLaVA-1.5",
    ),
    Case(
        "text_to_vision_scores",
        "photo_4096",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 4096, "rows": 40},
        "Qwen2.5-VL-7B, a photograph and a short question",
    ),
    Case(
        "text_to_vision_scores",
        "page_16384",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 16384, "rows": 40},
        "Qwen2.5-VL-7B, the page",
    ),
    Case(
        "text_to_vision_scores",
        "page_16384_64",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 16384, "rows": 64},
        "the same with a longer question",
    ),
    Case(
        "text_to_vision_scores",
        "image_1k",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 1375, "rows": 64},
        "Qwen2.5-VL-7B, 15 tokens, 1 296 visual ones and the question",
    ),
    Case(
        "text_to_vision_scores",
        "image_2k",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 5408, "rows": 64},
        "Qwen2.5-VL-7B, 5 329 visual tokens",
    ),
    Case(
        "text_to_vision_scores",
        "qwen3_8b",
        {"heads": 32, "key_heads": 8, "depth": 128, "keys": 4175, "rows": 64},
        "Qwen3-VL-8B, 2 048 pixels square: 4 096 visual tokens",
    ),
    Case(
        "text_to_vision_scores",
        "internvl_3328",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 3407, "rows": 64},
        "InternVL3-8B, twelve tiles and the thumbnail",
    ),
    Case(
        "text_to_vision_scores",
        "llava_576",
        {"heads": 32, "key_heads": 32, "depth": 128, "keys": 655, "rows": 64},
        "LLaVA-1.5-7B, whose heads do not share keys",
    ),
    Case(
        "text_to_vision_scores",
        "eight_1024",
        {"heads": 28, "key_heads": 4, "depth": 128, "keys": 1103, "rows": 64, "batch": 8},
        "Qwen2.5-VL-7B, eight prompts",
    ),
    Case(
        "compact_kv_",
        "photo_4096",
        {"layers": 17, "key_heads": 4, "keys": 4096, "depth": 128, "ratio": 0.15},
        "layers 0 to 16 of Qwen2.5-VL-7B, whose late pruning layer is 16",
    ),
    Case(
        "compact_kv_",
        "page_16384",
        {"layers": 17, "key_heads": 4, "keys": 16384, "depth": 128, "ratio": 0.15},
        "the same for the page",
    ),
    Case(
        "compact_kv_",
        "late_16384",
        {"layers": 17, "key_heads": 4, "keys": 10813, "depth": 128, "ratio": 0.22725},
        "the page after stage 1 kept two thirds of it: 10 813 slots -> 2 457",
    ),
    Case(
        "compact_kv_",
        "qwen3_8b",
        {"layers": 21, "key_heads": 8, "keys": 4175, "depth": 128, "ratio": 0.15},
        "Qwen3-VL-8B, 36 layers, pruned at the same share of its depth",
    ),
    Case(
        "compact_kv_",
        "internvl_3328",
        {"layers": 17, "key_heads": 4, "keys": 3407, "depth": 128, "ratio": 0.15},
        "InternVL3-8B, twelve tiles and the thumbnail",
    ),
    Case(
        "compact_kv_",
        "llava_576",
        {"layers": 17, "key_heads": 32, "keys": 655, "depth": 128, "ratio": 0.25},
        "LLaVA-1.5-7B",
    ),
    Case(
        "compact_kv_",
        "eight_1024",
        {"layers": 17, "key_heads": 4, "keys": 1103, "depth": 128, "ratio": 0.2, "batch": 8},
        "Qwen2.5-VL-7B, eight prompts",
    ),
    Case(
        "compact_rows",
        "photo_4096",
        {"keys": 4096, "hidden": 3584, "depth": 128, "ratio": 0.15},
        "hidden states and rotary tables of Qwen2.5-VL-7B",
    ),
    Case(
        "compact_rows",
        "late_16384",
        {"keys": 10813, "hidden": 3584, "depth": 128, "ratio": 0.22725},
        "the same for the page after stage 1",
    ),
]


def cases(operator: str) -> list[Case]:
    """The cases of one operator."""
    return [case for case in CASES if case.operator == operator]
