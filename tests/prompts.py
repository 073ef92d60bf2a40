"""Images, processors and conversations: what a user would pass, with the uint8 truth beside it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLImageProcessor

from erase.demo_assets import load_processor
from tests.hf.place import put

CELL = 28
"""Pixels along one side of a merged visual token: patch 14 times merge 2."""
PATCH = 14
MERGE = 2
TEMPORAL = 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@functools.cache
def _golden_images() -> dict[str, np.ndarray]:
    path = Path(__file__).parent / "data" / "golden" / "images.safetensors"
    return {name: image.numpy().transpose(1, 2, 0) for name, image in load_file(path).items()}


def photo(rows: int, columns: int, top: int = 0, left: int = 0) -> np.ndarray:
    """Crop of a photograph, uint8 [rows * 28, columns * 28, 3]: high entropies, all different."""
    crop = _golden_images()["china"][top:, left:][: rows * CELL, : columns * CELL]
    assert crop.shape == (rows * CELL, columns * CELL, 3)
    return np.ascontiguousarray(crop)


def page(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Printed lines on a flat background: most cells are blank and tie exactly at entropy 0."""
    generator = np.random.default_rng(seed)
    image = np.full((rows * CELL, columns * CELL, 3), 244, np.uint8)
    for top in range(CELL + 6, rows * CELL - 14, 2 * CELL):
        width = int(generator.integers(columns * CELL // 3, columns * CELL - 40))
        ink = generator.random((12, width)) < 0.45
        image[top : top + 12, 20 : 20 + width][ink] = generator.integers(0, 90, 3)
    return image


def gradient(rows: int, columns: int) -> np.ndarray:
    """Slow ramp with a little texture: middling entropies."""
    y, x = np.mgrid[0 : rows * CELL, 0 : columns * CELL]
    ramp = 30 + 0.23 * x + 0.11 * y + 2 * np.sin(x * y / 900.0)
    return np.clip(np.stack([ramp, ramp * 0.8 + 20, 200 - ramp * 0.5], -1), 0, 255).astype(np.uint8)


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Uniform noise: the highest entropies there are."""
    shape = (rows * CELL, columns * CELL, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@functools.cache
def image_processor(do_normalize: bool = True, max_tokens: int = 90) -> Qwen2VLImageProcessor:
    """The stock image processor, bounded so that prompts stay small."""
    size = {"shortest_edge": 4 * CELL * CELL, "longest_edge": max_tokens * CELL * CELL}
    return Qwen2VLImageProcessor(size=size, do_normalize=do_normalize)


@functools.cache
def chat_processor(do_normalize: bool = True):
    """Tokenizer, template and image processor; one object per setting, never changed by a test."""
    return load_processor(image_processor(do_normalize))


def cells_to_image(
    patches: np.ndarray, grid: tuple[int, int, int], patch: int = PATCH
) -> np.ndarray:
    """Undo the patch order of one image: [patches, C * 2 * p * p] -> [C, H, W] (first frame)."""
    _, height, width = grid
    blocks = patches.reshape(
        height // MERGE, width // MERGE, MERGE, MERGE, 3, TEMPORAL, patch, patch
    )
    image = blocks[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
    return image.reshape(3, height * patch, width * patch)


def image_to_cells(image: np.ndarray, patch: int = PATCH) -> np.ndarray:
    """The processor's patch order for one frame: [C, H, W] -> [patches, C, patch, patch]."""
    _, height, width = image.shape
    cell = MERGE * patch
    blocks = image.reshape(3, height // cell, MERGE, patch, width // cell, MERGE, patch)
    return blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, patch, patch)


def split_images(
    pixel_values: torch.Tensor, grids: torch.Tensor, patch: int = PATCH
) -> list[np.ndarray]:
    """Per-image arrays [C, H, W] out of the concatenated patches of a batch."""
    lengths = [int(grid.prod()) for grid in grids]
    parts = pixel_values.float().cpu().numpy()
    offsets = np.cumsum([0, *lengths])
    return [
        cells_to_image(parts[a:b], tuple(int(v) for v in grid), patch)
        for a, b, grid in zip(offsets[:-1], offsets[1:], grids, strict=True)
    ]


def resized_uint8(images: list[np.ndarray]) -> list[np.ndarray]:
    """What the processor's resize makes of the images: uint8 [3, H, W]."""
    out = image_processor()(
        [Image.fromarray(image) for image in images],
        do_rescale=False,
        do_normalize=False,
        return_tensors="pt",
    )
    levels = split_images(out["pixel_values"], out["image_grid_thw"])
    assert all(np.array_equal(level, np.rint(level)) for level in levels)
    return [level.astype(np.uint8) for level in levels]


@dataclass(frozen=True)
class Video:
    """Frames uint8 [T, 28 * rows, 28 * columns, 3]; T is even."""

    frames: np.ndarray

    @property
    def grid(self) -> tuple[int, int, int]:
        frames, height, width, _ = self.frames.shape
        return frames // TEMPORAL, height // PATCH, width // PATCH

    def tokens(self) -> int:
        return int(np.prod(self.grid)) // MERGE**2

    def patches(self) -> torch.Tensor:
        """The video processor's tensor, fp32 [patches, C * 2 * 14 * 14]."""
        scaled = self.frames.astype(np.float32) / 255.0
        levels = (scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
        frames = [image_to_cells(frame) for frame in levels.transpose(0, 3, 1, 2)]
        pairs = [np.stack(frames[t : t + TEMPORAL], 2) for t in range(0, len(frames), TEMPORAL)]
        return torch.from_numpy(np.concatenate(pairs).reshape(sum(map(len, pairs)), -1).copy())


@dataclass
class Prompt:
    """Model inputs on the device, and the resized uint8 images in the order the model sees them."""

    inputs: dict[str, torch.Tensor]
    images: list[np.ndarray]

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


Row = list  # parts of one row in order: str | np.ndarray (image) | Video


def _row_text(row: Row, head: str, tail: str) -> str:
    text = head
    for part in row:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Video):
            text += "<|vision_start|>" + "<|video_pad|>" * part.tokens() + "<|vision_end|>"
        else:
            text += IMAGE_SLOT
    return text + tail


def encode(
    rows: list[Row], do_normalize: bool = True, head: str = SYSTEM, tail: str = ANSWER
) -> Prompt:
    """Left-padded batch through the stock processors; videos are patched by hand."""
    processor = chat_processor(do_normalize)
    images = [part for row in rows for part in row if isinstance(part, np.ndarray)]
    videos = [part for row in rows for part in row if isinstance(part, Video)]
    texts = [_row_text(row, head, tail) for row in rows]
    pictures = [Image.fromarray(image) for image in images] or None
    if not videos:
        inputs = dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))
    else:
        inputs = _encode_with_videos(processor, texts, pictures, videos)
    return Prompt(put(inputs), resized_uint8(images) if images else [])


def _encode_with_videos(processor, texts: list[str], pictures, videos: list[Video]) -> dict:
    inputs: dict[str, torch.Tensor] = {}
    if pictures:
        inputs.update(processor.image_processor(pictures, return_tensors="pt"))
        counts = iter((inputs["image_grid_thw"].prod(-1) // MERGE**2).tolist())
        texts = [_expand_images(text, counts) for text in texts]
    inputs.update(processor.tokenizer(texts, padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == processor.image_token_id).int()
    inputs["mm_token_type_ids"] += 2 * (ids == processor.video_token_id).int()
    inputs["pixel_values_videos"] = torch.cat([video.patches() for video in videos])
    inputs["video_grid_thw"] = torch.tensor([video.grid for video in videos])
    return inputs


def _expand_images(text: str, counts) -> str:
    """Repeat every image placeholder as often as its image has tokens."""
    pieces = text.split("<|image_pad|>")
    out = pieces[0]
    for piece in pieces[1:]:
        out += "<|image_pad|>" * next(counts) + piece
    return out
