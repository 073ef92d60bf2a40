"""patch_entropy_from_pixels refuses what is no normalised uint8 image, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from erase_kernels import PixelLayout, patch_entropy_from_pixels
from erase_kernels.pixel_layout import INTEGER_TOLERANCE
from erase_kernels.testing import make_image, make_pixel_values
from tests.selection import BACKENDS

QWEN = PixelLayout.qwen()
EXACT = [torch.float32, torch.float16]


def shifted(by_levels: float, dtype: torch.dtype, at: int) -> Tensor:
    """A processed image of which one value is moved by a fraction of a gray level."""
    layout = PixelLayout.qwen(mean=(0.5,) * 3, std=(0.5,) * 3)
    values = make_pixel_values(torch.full((3, 28, 28), 127, dtype=torch.uint8), layout).double()
    values.view(-1)[at] += by_levels / 255 / 0.5
    return values.to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", [0, 195, 392, 784, 3 * 1176 + 784 + 195])
def test_tolerance(backend: str, at: int) -> None:
    layout = PixelLayout.qwen(mean=(0.5,) * 3, std=(0.5,) * 3)
    for dtype in EXACT:
        tolerance = INTEGER_TOLERANCE[dtype]
        for sign in (1, -1):
            inside = shifted(0.8 * sign * tolerance, dtype, at)
            patch_entropy_from_pixels(inside, layout, backend=backend)
            outside = shifted(1.3 * sign * tolerance, dtype, at)
            with pytest.raises(ValueError, match="pixel_values: expected normalised uint8"):
                patch_entropy_from_pixels(outside, layout, backend=backend)
    half = shifted(0.5, torch.bfloat16, at)
    patch_entropy_from_pixels(half, layout, backend=backend)  # bfloat16 cannot tell


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 60.0, -60.0])
@pytest.mark.parametrize("dtype", EXACT)
def test_values_out_of_range(bad: float, dtype: torch.dtype, backend: str) -> None:
    values = make_pixel_values(make_image(28, 56), QWEN).to(dtype)
    values[5, 20] = bad
    with pytest.raises(ValueError, match="pixel_values"):
        patch_entropy_from_pixels(values, QWEN, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-40, -1, 256, 300])
@pytest.mark.parametrize("dtype", EXACT)
def test_integers_that_are_no_levels(level: int, dtype: torch.dtype, backend: str) -> None:
    layout = PixelLayout.qwen(mean=(0.5,) * 3, std=(0.5,) * 3)
    values = make_pixel_values(make_image(28, 28), layout)
    values[1, 3] = (level / 255 - 0.5) / 0.5
    with pytest.raises(ValueError, match="pixel_values"):
        patch_entropy_from_pixels(values.to(dtype), layout, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_refused(backend: str) -> None:
    """All-zero tiles recover to 255 * mean, which is no integer."""
    with pytest.raises(ValueError, match="check mean, std and scale"):
        patch_entropy_from_pixels(torch.zeros(4, 1176), QWEN, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_bfloat16(backend: str) -> None:
    values = make_pixel_values(make_image(28, 28), QWEN).to(torch.bfloat16)
    values[0, 0] = math.nan
    with pytest.raises(ValueError, match="pixel_values"):
        patch_entropy_from_pixels(values, QWEN, backend=backend)


GOOD = torch.zeros(4, 1176)


@pytest.mark.parametrize(
    ("values", "layout", "error", "message"),
    [
        (GOOD.numpy(), QWEN, TypeError, "pixel_values: expected a torch.Tensor, got ndarray"),
        (GOOD.double(), QWEN, TypeError, "pixel_values: expected float32, float16 or bfloat16"),
        (GOOD.byte(), QWEN, TypeError, "pixel_values: expected float32, float16 or bfloat16"),
        (GOOD[:, :-1], QWEN, ValueError, r"pixel_values: expected shape \[n, 1176\], got"),
        (GOOD[None], QWEN, ValueError, r"pixel_values: expected shape \[n, 1176\], got"),
        (GOOD[0, 0], QWEN, ValueError, r"pixel_values: expected shape \[n, 1176\], got \(\)"),
        (GOOD[:3], QWEN, ValueError, "first dimension that is a multiple of 4"),
        (GOOD, {"patch_size": 14}, TypeError, "layout: expected a PixelLayout, got dict"),
    ],
)
def test_bad_input(values, layout, error, message: str) -> None:
    for backend in (None, *BACKENDS):
        with pytest.raises(error, match=message):
            patch_entropy_from_pixels(values, layout, backend=backend)
