"""Entropies of videos: both frames of a temporal slice in one histogram, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from erase_kernels import PixelLayout, patch_entropy_from_pixels
from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD
from erase_kernels.testing import assert_matches, make_image, normalize_levels
from tests.device.support import BACKENDS, ON_GPU, run
from tests.oracle_choices import slice_entropies

HALVES = ((0.5,) * 3, (0.5,) * 3)
LAYOUTS = {
    "qwen2": PixelLayout.qwen(14, mean=CLIP_MEAN, std=CLIP_STD, all_frames=True),
    "qwen3": PixelLayout.qwen(16, mean=HALVES[0], std=HALVES[1], all_frames=True),
    "three frames": PixelLayout.qwen(5, 1, 3, *HALVES, all_frames=True),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sizes_of(layout: PixelLayout) -> tuple[int, int, int]:
    """(patch, merge, frames) of a Qwen layout."""
    patch = layout.pixel_sizes[2]
    return patch, int(layout.pixel_sizes[0] ** 0.5), layout.pixel_sizes[1] // patch


def frames_of(layout: PixelLayout, kind: str = "noise") -> Tensor:
    """uint8 [frames, 3, H, W] of 1 x 2 cells, every frame another picture."""
    patch, merge, frames = sizes_of(layout)
    side = patch * merge
    made = [make_image(side, 2 * side, kind=kind, seed=seed) for seed in range(frames)]
    return torch.stack(made)


def values_of(frames: Tensor, layout: PixelLayout) -> Tensor:
    """The video processor's tensor of one slice, fp32 [patches, 3 * frames * p * p]."""
    patch, merge, count = sizes_of(layout)
    _, channels, height, width = frames.shape
    flat = torch.stack([normalize_levels(frame.reshape(channels, -1), layout) for frame in frames])
    down, across = height // (patch * merge), width // (patch * merge)
    split = flat.view(count, channels, down, merge, patch, across, merge, patch)
    return split.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, layout.shape[0])


def entropies(values: Tensor, layout: PixelLayout, backend: str) -> Tensor:
    operator = "patch_entropy_from_pixels"
    return run(patch_entropy_from_pixels, values, layout, backend=backend, ran=operator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_frames(name: str, dtype: torch.dtype, backend: str, poisoned) -> None:
    layout = LAYOUTS[name]
    values = values_of(frames_of(layout), layout).to(dtype)
    expected = patch_entropy_from_pixels(values, layout, backend="reference")
    assert_matches(entropies(values, layout, backend), expected)


@pytest.mark.parametrize("backend", ["reference", *([] if ON_GPU else ["native"])])
@pytest.mark.parametrize("kind", ["noise", "scene"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_against_histograms_of_the_frames(name: str, kind: str, backend: str) -> None:
    layout = LAYOUTS[name]
    patch, merge, _ = sizes_of(layout)
    frames = frames_of(layout, kind)
    got = patch_entropy_from_pixels(values_of(frames, layout), layout, backend=backend)
    np.testing.assert_array_equal(got.numpy(), slice_entropies(frames.numpy(), patch * merge))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_pixels_in_one_bin(name: str, backend: str) -> None:
    """A count of all 1568 or 2048 pixels, the most that a histogram of a slice must hold."""
    layout = LAYOUTS[name]
    flat = torch.full_like(frames_of(layout), 200)
    assert entropies(values_of(flat, layout), layout, backend).tolist() == [0.0] * 2
    flat[-1] = 3  # the other frames' pixels in a bin of their own
    share = 1 / len(flat)
    parts = torch.tensor([share, 1 - share], dtype=torch.float64)
    expected = -(parts * parts.log()).sum().float().expand(2)
    got = entropies(values_of(flat, layout), layout, backend)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-6)
