"""Prompts with images and videos in any order for the Qwen families, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from erase.demo_assets import load_tokenizer
from tests.edges_oracle import slice_edges
from tests.families._base import IDS
from tests.families.qwen2_vl import QwenPrompts
from tests.hf.place import put
from tests.oracle_choices import Picture, slice_entropies
from tests.prompts import ANSWER, MERGE, SYSTEM, TEMPORAL, image_to_cells, noise, page, photo

SECONDS_PER_SLICE = 0.5


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [T, H, W, 3], already resized; an odd last one is repeated, as processors do."""

    frames: np.ndarray

    def even(self) -> np.ndarray:
        """[2 * slices, 3, H, W]."""
        frames = self.frames.transpose(0, 3, 1, 2)
        return np.concatenate([frames, frames[-1:]])[: len(frames) + len(frames) % TEMPORAL]


def clip(family: QwenPrompts, frames: int, rows: int, columns: int, seed: int = 0) -> Clip:
    """A video whose frames differ: cuts between a page, a photograph and noise, cell by cell."""
    cell = MERGE * family.patch
    generator = np.random.default_rng(seed)
    sources = [photo(7, 9), page(7, 9, seed=seed), noise(7, 9, seed)]
    out = np.empty((frames, rows * cell, columns * cell, 3), np.uint8)
    for frame in out:
        for top in range(0, rows * cell, cell):
            for left in range(0, columns * cell, cell):
                source = sources[generator.choice(3, p=(0.6, 0.3, 0.1))]
                y, x = (int(generator.integers(0, size - cell)) for size in source.shape[:2])
                frame[top : top + cell, left : left + cell] = source[y : y + cell, x : x + cell]
    return Clip(out)


@dataclass
class VideoPrompt:
    """Model inputs on the device; what is true of the images and videos, in order."""

    inputs: dict[str, torch.Tensor]
    images: list[Picture] = field(default_factory=list)
    videos: list[Picture] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


def patches_of(family: QwenPrompts, video: Clip) -> torch.Tensor:
    """The video processor's tensor, fp32 [patches, C * 2 * p * p]."""
    scaled = video.even().astype(np.float32) / 255.0
    mean, std = (np.float32(v)[:, None, None] for v in (family.mean, family.std))
    frames = [image_to_cells(frame, family.patch) for frame in (scaled - mean) / std]
    slices = [np.stack(frames[t : t + TEMPORAL], 2) for t in range(0, len(frames), TEMPORAL)]
    return torch.from_numpy(np.concatenate(slices).reshape(sum(map(len, slices)), -1).copy())


def truth_of(family: QwenPrompts, video: Clip) -> Picture:
    """Cells slice by slice, row-major; each slice from its own two frames."""
    frames, cell = video.even(), MERGE * family.patch
    slices = [frames[t : t + TEMPORAL] for t in range(0, len(frames), TEMPORAL)]
    entropy = np.concatenate([slice_entropies(one, cell) for one in slices])
    edges = np.concatenate([slice_edges(one, cell) for one in slices])
    return Picture(entropy, [True] * len(entropy), edges=edges)


def grid_of(family: QwenPrompts, video: Clip) -> list[int]:
    count, _, height, width = video.even().shape
    return [count // TEMPORAL, height // family.patch, width // family.patch]


def slot_of(family: QwenPrompts, video: Clip) -> list[int]:
    """Ids of a video: one run of placeholders, or for Qwen3 one behind each time stamp."""
    slices, height, width = grid_of(family, video)
    per_slice = height * width // MERGE**2
    start, pad, end = (IDS[f"{k}_token_id"] for k in ("vision_start", "video", "vision_end"))
    if not family.name.startswith("qwen3"):
        return [start, *[pad] * (slices * per_slice), end]
    ids: list[int] = []
    for t in range(slices):
        stamp = load_tokenizer()(f"<{(t + 0.5) * SECONDS_PER_SLICE:.1f} seconds>").input_ids
        ids += [*stamp, start, *[pad] * per_slice, end]
    return ids


def encode(
    family: QwenPrompts, rows: list[list[Any]], head: str = SYSTEM, tail: str = ANSWER
) -> VideoPrompt:
    """Left-padded batch: each row is a list of texts, uint8 images [H, W, 3] and clips."""
    parts = [part for row in rows for part in row]
    images = [part for part in parts if isinstance(part, np.ndarray)]
    videos = [part for part in parts if isinstance(part, Clip)]
    tensors, pictures = family.pictures(images) if images else ({}, [])
    if videos:
        tensors["pixel_values_videos"] = torch.cat([patches_of(family, v) for v in videos])
        tensors["video_grid_thw"] = torch.tensor([grid_of(family, v) for v in videos])
    left = iter(pictures)
    encoded = [_row(family, row, head, tail, left) for row in rows]
    width = max(map(len, encoded))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": token_types(ids)}
    truths = [truth_of(family, video) for video in videos]
    return VideoPrompt(put({**inputs, **tensors}), pictures, truths)


def token_types(ids: torch.Tensor) -> torch.Tensor:
    image, video = (ids == IDS[f"{kind}_token_id"] for kind in ("image", "video"))
    return image.int() + 2 * video.int()


def _row(family: QwenPrompts, row: list[Any], head: str, tail: str, left: Any) -> list[int]:
    tokenizer = load_tokenizer()
    ids = list(tokenizer(head).input_ids)
    for part in row:
        if isinstance(part, str):
            ids += tokenizer(part).input_ids
        elif isinstance(part, Clip):
            ids += slot_of(family, part)
        else:
            ids += family.slot(next(left))
    return ids + list(tokenizer(tail).input_ids)


def positions_of(model: Any, joined: dict, prompts: list[VideoPrompt]) -> torch.Tensor:
    """[4, B, S] positions of a conversation of one row, as generate() prepares a first turn."""
    ids, mask = joined["input_ids"], joined["attention_mask"]
    grids = {}
    for name in ("image_grid_thw", "video_grid_thw"):
        found = [prompt.inputs[name] for prompt in prompts if name in prompt.inputs]
        grids[name] = torch.cat(found) if found else None
    base = model.base_model
    positions, base.rope_deltas = base.get_rope_index(
        ids, mm_token_type_ids=token_types(ids).long(), attention_mask=mask, **grids
    )
    text = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return torch.cat([text[None], positions])
