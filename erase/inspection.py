"""What ERASE makes of one image before any model runs: entropies, level, layer, stage-1 cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from erase.methods import EraseConfig, ImagePlan, ImageSignals
from erase.methods.presets import PixelBounds, Preset, preset_name
from erase_kernels import choose_backend, patch_edges, patch_entropy

OPERATORS = ("patch_entropy", "complexity_plan", "segmented_topk")

_LEVELS_PER_BYTE = 257
"""65535 / 255: one 8-bit gray level in a 16-bit image."""
_WIDE_MODES = ("I", "F")
"""Pillow's 32-bit modes; their white level is not recorded in the image."""


@dataclass(frozen=True)
class Inspection:
    """Stage 1 on one image.

    Attributes:
        image: u8 [3, H, W], the resized image the entropies are computed on.
        cell: side of a cell (one visual token) in pixels; divides H and W.
        entropy: f32 [n] nats, cells in row-major order.
        median: lower median of ``entropy``, the image's complexity.
        level: 0 (most complex) to number of thresholds.
        late: whether this level prunes late.
        layer: 0-based decoder layer after which an image of this level is pruned.
        kept: i64, ascending cells that pass stage 1.
        final: visual tokens that stay after stage 2, None where the method has no stage 2.
        method: the settings used.
        backends: operator -> backend that ran.
    """

    image: Tensor
    cell: int
    entropy: Tensor
    median: float
    level: int
    late: bool
    layer: int
    kept: Tensor
    final: int | None
    method: EraseConfig
    backends: dict[str, str]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.image.shape[1] // self.cell, self.image.shape[2] // self.cell


class ImageShapeError(ValueError):
    """The image processor refuses this shape, e.g. a line of pixels."""


def load_image(path: Path) -> Image.Image:
    """Any image Pillow can open, upright, as 8-bit RGB; of an animation the first frame.

    16-bit gray levels are divided by 257. 32-bit ones, whose white level is unknown, are
    stretched so that the image's own range fills 0..255.

    Raises:
        OSError, Image.DecompressionBombError: the file is missing, broken or no image.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):
            return _from_levels(np.asarray(image) / _LEVELS_PER_BYTE)
        if image.mode in _WIDE_MODES:
            return _from_levels(_stretched(np.asarray(image, dtype=np.float64)))
        return image.convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    return (finite - low) * (255.0 / (high - low)) if high > low else np.zeros_like(finite)


def _from_levels(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")


def image_processor(min_pixels: int, max_pixels: int, cell: int = 28) -> Any:
    """The stock Qwen2-VL image processor with these bounds of the resized area, in pixels.

    ``cell``: side of a visual token, which is 2 x 2 patches.
    """
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        from transformers import Qwen2VLImageProcessor as Processor
    else:
        from transformers import Qwen2VLImageProcessorPil as Processor
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Processor(size=size, patch_size=cell // Processor.merge_size)


def cell_side(processor: Any) -> int:
    """Pixels along one side of a visual token."""
    return int(processor.patch_size * processor.merge_size)


def resize(image: Image.Image, processor: Any) -> Tensor:
    """The image as the processor resizes it, before rescaling and normalising: u8 [3, H, W].

    Raises:
        ImageShapeError: the processor refuses the image's shape.
    """
    try:
        output = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")
    except ValueError as error:
        raise ImageShapeError(f"image: {image.width} x {image.height} pixels: {error}") from error
    _, rows, columns = output["image_grid_thw"][0].tolist()
    patch, merge = processor.patch_size, processor.merge_size
    # [cell row, cell column, patch row, patch column, channel, frame, y, x]; the two frames agree.
    pixels: Tensor = output["pixel_values"]
    blocks = pixels.reshape(
        rows // merge,
        columns // merge,
        merge,
        merge,
        3,
        processor.temporal_patch_size,
        patch,
        patch,
    )[:, :, :, :, :, 0]
    levels = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
    return levels.round().clamp(0, 255).to(torch.uint8)


def inspect_image(image: Image.Image, preset: Preset, method: EraseConfig) -> Inspection:
    """Resizes ``image`` as ``preset``'s processor would and runs stage 1 of ``method`` on it.

    Raises:
        ImageShapeError: the processor refuses the image's shape.
        ValueError: ``preset`` cuts images into tiles, which have no single picture.
    """
    bounds = preset.resolution
    if not isinstance(bounds, PixelBounds):
        name = preset_name(preset)
        raise ValueError(f"preset: {name} cuts images into tiles; only whole images are shown")
    processor = image_processor(bounds.min_pixels, bounds.max_pixels, preset.cell)
    resized, cell = resize(image, processor), cell_side(processor)
    entropy = patch_entropy(resized, cell)
    size = len(entropy)
    wants_edges = "pixel_edges" in method.needs
    edges = patch_edges(resized, cell) if wants_edges else None
    signals = ImageSignals(entropy, (size,), torch.tensor([0, size], dtype=torch.int32), edges)
    draft = method.draft(signals)
    scores = method.stage1_scores(signals, draft)
    level, count = int(draft.level), int(draft.count)
    plan = ImagePlan(float(draft.median), level, count, size, row=0)
    operators = (*OPERATORS, "patch_edges") if wants_edges else OPERATORS
    late = level < method.num_complex_levels
    return Inspection(
        image=resized,
        cell=cell,
        entropy=entropy,
        median=plan.median,
        level=level,
        late=late,
        layer=method.late_layer if late else method.early_layer,
        kept=method.select(signals, [count], scores).indices.to(torch.int64),
        final=None if method.keep_ratio is None else method.decide([plan], batch=1)[0].final,
        method=method,
        backends={op: choose_backend(op, entropy.device) for op in operators},
    )
