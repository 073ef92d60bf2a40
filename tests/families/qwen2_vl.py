"""Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.families._base import IDS, TinyFamily
from tests.models import build_model, shared_model
from tests.oracle_choices import Picture, cell_entropies
from tests.prompts import CLIP_MEAN, CLIP_STD, MERGE, PATCH, Prompt, image_processor, resized_uint8


class QwenPrompts(TinyFamily):
    """What the Qwen families share: positions of three axes, which a stock model must be given."""

    released = True
    mrope = True
    patch: int  # pixels along a side
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def token_types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (ids == IDS["image_token_id"]).int()}

    def decode_positions(self, model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return mrope_step(model, mask)

    def later_images(self, model: Any, joined: dict, prompts: list[Prompt]) -> dict[str, Any]:
        extra = super().later_images(model, joined, prompts)
        return {**extra, "position_ids": mrope_positions(model, joined, prompts)}


class TinyQwen2(QwenPrompts):
    """The models of ``tests/models.py``."""

    patch = PATCH
    mean = CLIP_MEAN
    std = CLIP_STD

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, attention: str = "sdpa", seed: int = 7, **text: Any) -> Any:
        return build_model(self.name, attention, seed, **text)

    def model(self, attention: str = "sdpa") -> Any:
        return shared_model(self.name, attention)

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        tensors = dict(image_processor()(images, return_tensors="pt"))
        entropies = [cell_entropies(image) for image in resized_uint8(images)]
        return tensors, [Picture(e, [True] * len(e)) for e in entropies]


def mrope_step(model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """[3, B, 1] positions of the newest token: tokens so far, shifted as the prefill left it."""
    position = mask.sum(-1, keepdim=True) - 1 + model.base_model.rope_deltas
    return {"position_ids": position[None].expand(3, -1, -1)}


def grids_by_row(prompts: list[Prompt], image_token: int) -> torch.Tensor:
    """Image grids of a conversation: all turns of row 0, then all turns of row 1, ..."""
    rows: list[list[torch.Tensor]] = [[] for _ in prompts[0].inputs["input_ids"]]
    for prompt in prompts:
        grids = list(prompt.inputs.get("image_grid_thw", ()))
        for b, ids in enumerate(prompt.inputs["input_ids"]):
            tokens = int((ids == image_token).sum())
            while tokens > 0:
                rows[b].append(grids.pop(0))
                tokens -= int(rows[b][-1].prod()) // MERGE**2
    return torch.stack([grid for row in rows for grid in row])


def mrope_positions(model: Any, joined: dict, prompts: list[Prompt]) -> torch.Tensor:
    """[4, B, S] positions of a whole conversation, as generate() prepares a first turn."""
    ids, mask = joined["input_ids"], joined["attention_mask"]
    base = model.base_model
    positions, base.rope_deltas = base.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.image_token_id).long(),
        image_grid_thw=grids_by_row(prompts, model.config.image_token_id),
        attention_mask=mask,
    )
    text = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return torch.cat([text[None], positions])


FAMILIES = (TinyQwen2("qwen2_5_vl"), TinyQwen2("qwen2_vl"))
