"""patch_edges_from_pixels: the edges of the image a processor started from, to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import PixelLayout, patch_edges_from_pixels, status_word
from erase_kernels.ops import _edges
from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD, INTEGER_TOLERANCE
from erase_kernels.testing import assert_matches, make_image, make_pixel_values, record_ops
from tests.edges_oracle import cell_edges, slice_edges
from tests.selection import Banded, check_compiled, check_opcheck

BACKENDS = ("torch", "reference")
QWEN = PixelLayout.qwen()
TILES = PixelLayout.tiles(28, 56, 84, CLIP_MEAN, CLIP_STD)
EXACT = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", ["scene", "noise", "flat"])
def test_equals_the_image(kind: str, dtype: torch.dtype) -> None:
    """Also across the patches that make up a cell."""
    image = make_image(84, 112, kind=kind)
    values = make_pixel_values(image, QWEN).to(dtype)
    expected = torch.from_numpy(cell_edges(image.numpy(), 28))
    with record_ops() as ops:
        got = patch_edges_from_pixels(values, QWEN)
    assert ops == ["erase_kernels::patch_edges_from_pixels_torch"]
    assert_matches(got, expected)
    assert_matches(patch_edges_from_pixels(values, QWEN, backend="reference"), expected)


def test_bfloat16_takes_the_recovered_levels() -> None:
    """One blue level comes back off by one; both backends read the same."""
    image = make_image(28, 56, kind="noise")
    layout = PixelLayout.tiles(28, 28, 56, CLIP_MEAN, CLIP_STD)
    values = make_pixel_values(image, layout).to(torch.bfloat16)
    recovered = layout.recover(values).view(2, 3, 28, 28).numpy()
    expected = np.concatenate([cell_edges(cell, 28) for cell in recovered])
    for backend in BACKENDS:
        got = patch_edges_from_pixels(values, layout, backend=backend)
        assert_matches(got, torch.from_numpy(expected))


@settings(max_examples=25, deadline=None)
@given(
    patch=st.integers(1, 7),
    merge=st.integers(1, 3),
    temporal=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    dtype=st.sampled_from(EXACT),
    seed=st.integers(0, 2**31),
)
def test_any_qwen_layout(patch, merge, temporal, rows, columns, dtype, seed) -> None:
    layout = PixelLayout.qwen(patch, merge, temporal)
    side = patch * merge
    image = make_image(rows * side, columns * side, kind="noise", seed=seed)
    values = make_pixel_values(image, layout).to(dtype)
    expected = torch.from_numpy(cell_edges(image.numpy(), side))
    for backend in BACKENDS:
        assert_matches(patch_edges_from_pixels(values, layout, backend=backend), expected)


@pytest.mark.parametrize("cell", [1, 3, 7, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles(cell: int, channels: int) -> None:
    layout = PixelLayout.tiles(cell, 2 * cell, 5 * cell, (0.5,) * channels, (0.4,) * channels)
    tiles = [make_image(2 * cell, 5 * cell, kind="noise", seed=seed)[:channels] for seed in (1, 2)]
    values = torch.cat([make_pixel_values(tile, layout) for tile in tiles])
    expected = np.concatenate([cell_edges(tile.numpy(), cell) for tile in tiles])
    for backend in BACKENDS:
        got = patch_edges_from_pixels(values, layout, backend=backend)
        assert_matches(got, torch.from_numpy(expected))


@pytest.mark.parametrize("temporal", [2, 3])
def test_frames_of_a_slice(temporal: int) -> None:
    """Sums over all frames, but no step from one frame to the next."""
    patch, merge = 5, 2
    side = patch * merge
    frames = [make_image(2 * side, side, kind="noise", seed=seed) for seed in range(temporal)]
    frames[-1] = make_image(2 * side, side, kind="flat")
    single = PixelLayout.qwen(patch, merge, 1)
    layout = PixelLayout.qwen(patch, merge, temporal, all_frames=True)
    slots = [make_pixel_values(frame, single).view(-1, 3, 1, patch * patch) for frame in frames]
    values = torch.cat(slots, dim=2).flatten(1)
    expected = torch.from_numpy(slice_edges(np.stack([frame.numpy() for frame in frames]), side))
    for backend in BACKENDS:
        assert_matches(patch_edges_from_pixels(values, layout, backend=backend), expected)
    first = PixelLayout.qwen(patch, merge, temporal)
    only = torch.from_numpy(cell_edges(frames[0].numpy(), side))
    assert_matches(patch_edges_from_pixels(values, first), only)


@pytest.mark.parametrize("pixels", [1, 28**2, 3 * 28**2, 6 * 28**2 + 1])
def test_chunks_do_not_change_results(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(112, 84, kind="noise")
    values = make_pixel_values(image, TILES)
    expected = torch.from_numpy(
        np.concatenate([cell_edges(tile.numpy(), 28) for tile in image.split(56, dim=1)])
    )
    monkeypatch.setattr(_edges, "CHUNK_PIXELS", pixels)
    assert_matches(patch_edges_from_pixels(values, TILES), expected)


def test_other_strides_are_copied() -> None:
    values = make_pixel_values(make_image(56, 84, kind="noise"), TILES)
    banded = Banded(values)
    for backend in BACKENDS:
        got = patch_edges_from_pixels(banded.view, TILES, backend=backend)
        assert_matches(got, patch_edges_from_pixels(values, TILES))
    assert banded.intact()


def test_no_rows_and_no_gradients() -> None:
    values = make_pixel_values(make_image(28, 28), QWEN).requires_grad_()
    for backend in BACKENDS:
        assert patch_edges_from_pixels(torch.empty(0, 1176), QWEN, backend=backend).shape == (0,)
        assert not patch_edges_from_pixels(values, QWEN, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 60.0, 0.3])
@pytest.mark.parametrize("dtype", EXACT)
def test_values_that_are_no_levels(bad: float, dtype: torch.dtype, backend: str) -> None:
    layout = PixelLayout.qwen(mean=(0.5,) * 3, std=(0.5,) * 3)
    values = make_pixel_values(make_image(28, 56, kind="flat"), layout)
    values[5, 20] += bad / 255
    if bad in (math.inf, 60.0):
        values[5, 20] = bad
    with pytest.raises(ValueError, match="pixel_values: expected normalised uint8"):
        patch_edges_from_pixels(values.to(dtype), layout, backend=backend)
    assert status_word(values.device).item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend: str) -> None:
    values = make_pixel_values(make_image(28, 56), QWEN)
    for pixels, layout, error, message in [
        (values, "qwen", TypeError, "layout: expected a PixelLayout"),
        (values.double(), QWEN, TypeError, "pixel_values: expected float32"),
        (values[:, :-1], QWEN, ValueError, "pixel_values: expected shape"),
        (values[:3], QWEN, ValueError, "multiple of 4"),
    ]:
        with pytest.raises(error, match=message):
            patch_edges_from_pixels(pixels, layout, backend=backend)


@pytest.mark.parametrize(("field", "value"), [("segment_columns", 3), ("frames", 0), ("frames", 4)])
def test_layouts_that_do_not_divide(field: str, value: int) -> None:
    fields = {**vars(QWEN), field: value}
    with pytest.raises(ValueError, match=f"{field}: expected a divisor of"):
        PixelLayout(**fields)


def arguments(values: Tensor, layout: PixelLayout) -> tuple[object, ...]:
    geometry = (layout.cell_sizes, layout.cell_strides, layout.pixel_sizes, layout.pixel_strides)
    lists = [list(part) for part in geometry]
    order = (layout.channel_stride, layout.segment_columns, layout.frames)
    statistics = (list(layout.mean), list(layout.std), layout.scale)
    return (values, *lists, *order, *statistics, INTEGER_TOLERANCE[values.dtype])


@pytest.mark.parametrize("layout", [QWEN, TILES], ids=["qwen", "tiles"])
def test_opcheck(layout: PixelLayout) -> None:
    values = make_pixel_values(make_image(56, 84), layout)
    check_opcheck("patch_edges_from_pixels_torch", *arguments(values, layout))


def test_compiled() -> None:
    values = make_pixel_values(make_image(56, 84), QWEN)

    def doubled(x: Tensor) -> Tensor:
        return patch_edges_from_pixels(x, QWEN) * 2

    assert_matches(check_compiled(doubled, values), doubled(values))
