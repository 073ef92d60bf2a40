"""patch_edges where the other operators of this folder run: the CPU's bits, without waiting."""

from __future__ import annotations

import contextlib

import pytest
import torch

from erase_kernels import (
    PixelLayout,
    check_status,
    choose_backend,
    patch_edges,
    patch_edges_from_pixels,
    status_word,
)
from erase_kernels.testing import assert_matches, make_image, make_pixel_values
from tests.hf.place import DEVICE, ON_GPU

LAYOUTS = {
    "qwen": PixelLayout.qwen(),
    "video": PixelLayout.qwen(all_frames=True),
    "tiles": PixelLayout.tiles(28, 56, 84, (0.5,) * 3, (0.5,) * 3),
}


@contextlib.contextmanager
def no_waits() -> object:
    """RuntimeError where the host would wait for a stream of a GPU."""
    status_word(DEVICE)  # made once, which waits
    if not ON_GPU:
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("hwc", [False, True])
def test_images(hwc: bool) -> None:
    images = [make_image(84, 56, hwc=hwc), make_image(28, 112, kind="noise")[1]]
    there = [image.to(DEVICE) for image in images]
    with no_waits():
        got = patch_edges(there, 28)
    assert choose_backend("patch_edges", DEVICE) == "torch"
    assert_matches(got.cpu(), patch_edges(images, 28, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pixels(layout: PixelLayout, dtype: torch.dtype) -> None:
    source = LAYOUTS["qwen"] if layout.frames > 1 else layout
    values = make_pixel_values(make_image(112, 84, kind="noise"), source).to(dtype)
    there = values.to(DEVICE)
    with no_waits():
        got = patch_edges_from_pixels(there, layout)
    assert_matches(got.cpu(), patch_edges_from_pixels(values, layout, backend="reference"))
    check_status(DEVICE)


def test_every_triple_of_levels() -> None:
    """Luma without fused products: neighbours are whole steps apart only if every floor agrees."""
    levels = torch.arange(2**24, dtype=torch.int32).view(4096, 4096)
    image = torch.stack([levels & 255, levels >> 8 & 255, levels >> 16]).to(torch.uint8)
    got = patch_edges(image.to(DEVICE), 32)
    assert_matches(got.cpu(), patch_edges(image, 32, backend="reference"))


def test_values_that_are_no_levels() -> None:
    """The CPU raises; on a GPU the status word tells, without waiting."""
    layout = LAYOUTS["tiles"]
    values = make_pixel_values(make_image(56, 84), layout)
    values[0, 1, 3, 5] += 0.3 / 255 / 0.5
    there = values.to(DEVICE)
    with pytest.raises(ValueError, match="pixel_values: expected normalised uint8"):
        _and_then_wait(there, layout)
    check_status(DEVICE)


def _and_then_wait(values: torch.Tensor, layout: PixelLayout) -> None:
    with no_waits():
        patch_edges_from_pixels(values, layout)
    check_status(DEVICE)
