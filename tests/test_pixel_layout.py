"""PixelLayout: every gray level comes back, for every dtype, channel and set of statistics."""

from __future__ import annotations

import math

import pytest
import torch

from erase_kernels import PixelLayout, patch_entropy_from_pixels
from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD
from erase_kernels.testing import assert_matches, make_image, make_pixel_values, normalize_levels

STATISTICS = {
    "clip": (CLIP_MEAN, CLIP_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "not normalised": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# What rounding to bfloat16 costs: (channel, level) that come back off by one. Values beyond 2 have
# steps of 1/64 there, and one of them falls on the wrong side of a half.
WRONG_BFLOAT16 = {"clip": [(2, 253)]}


def all_levels(layout: PixelLayout) -> torch.Tensor:
    """uint8 [1, C, 256]: each channel runs through every level, in orders of its own."""
    level = torch.arange(256)
    return torch.stack([(level * step) % 256 for step in (1, 3, 5)[: layout.channels]])[None].byte()


def one_cell(statistics: str, scale: float = 255.0) -> PixelLayout:
    mean, std = STATISTICS[statistics]
    return PixelLayout.tiles(16, 16, 16, mean, std, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_every_level_comes_back(statistics: str, dtype: torch.dtype) -> None:
    layout = one_cell(statistics)
    levels = all_levels(layout)
    stored = normalize_levels(levels, layout).to(dtype).view(1, 3, 16, 16)
    recovered = layout.recover(stored)
    assert recovered.dtype == torch.uint8
    wrong = (recovered != levels)[0].nonzero()
    found = [(channel, int(levels[0, channel, at])) for channel, at in wrong.tolist()]
    assert found == (WRONG_BFLOAT16.get(statistics, []) if dtype == torch.bfloat16 else [])
    assert ((recovered.int() - levels.int()).abs() <= 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_native_levels_equal_recover(statistics: str, dtype: torch.dtype) -> None:
    """A cell holds a level and its neighbour: its entropy is 0 only if both recover alike."""
    for mean, std in zip(*STATISTICS[statistics], strict=True):
        layout = PixelLayout.tiles(2, 2, 2, (mean,), (std,))
        level = torch.arange(256)
        for shift in (0, 1):
            pair = torch.stack([level, (level + shift).clamp(max=255)], 1)[:, None, :].byte()
            stored = normalize_levels(pair, layout).to(dtype).view(256, 1, 1, 2)
            values = stored.expand(256, 1, 2, 2).contiguous()
            recovered = layout.recover(values)[:, 0]
            native = patch_entropy_from_pixels(values, layout, backend="native")
            differ = recovered[:, 0] != recovered[:, 1]
            assert torch.equal(native, torch.where(differ, torch.tensor(math.log(2)), 0.0))
            if dtype != torch.bfloat16:
                assert int(differ.sum()) == 255 * shift


def test_scale_of_one() -> None:
    """A processor that normalises without rescaling stores (level - mean) / std."""
    layout = PixelLayout.tiles(16, 16, 16, (10.0,) * 3, (2.0,) * 3, scale=1.0)
    levels = all_levels(layout)
    stored = ((levels.float() - 10.0) / 2.0).view(1, 3, 16, 16)
    assert torch.equal(layout.recover(stored), levels)


@pytest.mark.parametrize(("merge", "temporal"), [(2, 2), (1, 1), (3, 2), (2, 3)])
def test_qwen_order(merge: int, temporal: int) -> None:
    """Cells are the merged squares of the image in row-major order; N runs patch by patch."""
    layout = PixelLayout.qwen(patch_size=4, merge_size=merge, temporal_patch_size=temporal)
    side = 4 * merge
    image = make_image(2 * side, 3 * side, kind="noise")
    recovered = layout.recover(make_pixel_values(image, layout))
    assert recovered.shape == (6, 3, side * side)
    for cell in range(6):
        top, left = cell // 3 * side, cell % 3 * side
        square = image[:, top : top + side, left : left + side]
        patches = square.reshape(3, merge, 4, merge, 4).permute(0, 1, 3, 2, 4).reshape(3, -1)
        assert torch.equal(recovered[cell], patches)


def test_only_the_first_temporal_slot_is_read() -> None:
    layout = PixelLayout.qwen(patch_size=4)
    values = make_pixel_values(make_image(16, 16, kind="noise"), layout)
    expected = layout.recover(values)
    values.view(-1, 3, 2, 16)[:, :, 1] = math.nan
    assert torch.equal(layout.recover(values), expected)
    assert patch_entropy_from_pixels(values, layout, backend="native").isfinite().all()


@pytest.mark.parametrize(("patch", "merge", "temporal"), [(4, 2, 2), (5, 1, 3)])
def test_all_frames_are_read(patch: int, merge: int, temporal: int) -> None:
    """Each pixel of a patch, frame after frame; channels stay apart."""
    layout = PixelLayout.qwen(patch, merge, temporal, all_frames=True)
    assert layout.cell_pixels == (patch * merge) ** 2 * temporal
    assert layout.shape == PixelLayout.qwen(patch, merge, temporal).shape
    levels = torch.randint(0, 256, (6 * merge**2, 3, temporal, patch, patch), dtype=torch.uint8)
    flat = normalize_levels(levels.transpose(0, 1).reshape(3, -1), layout)
    values = flat.view(3, len(levels), -1).transpose(0, 1).reshape(len(levels), -1)
    recovered = layout.recover(values)
    by_cell = levels.view(6, merge**2, 3, -1).transpose(1, 2).reshape(6, 3, -1)
    assert torch.equal(recovered, by_cell)


def test_pixels_of_a_slice() -> None:
    assert PixelLayout.qwen(14, all_frames=True).cell_pixels == 1568
    assert PixelLayout.qwen(16, all_frames=True).cell_pixels == 2048
    assert PixelLayout.qwen(14, all_frames=True) != PixelLayout.qwen(14)


def test_tiles_order() -> None:
    layout = PixelLayout.tiles(4, 8, 12, CLIP_MEAN, CLIP_STD)
    image = make_image(16, 24, kind="noise")  # 2 x 2 tiles of 8 x 12 pixels
    recovered = layout.recover(make_pixel_values(image, layout))
    assert recovered.shape == (24, 3, 16)
    squares = [
        image[:, top + y : top + y + 4, left + x : left + x + 4].reshape(3, 16)
        for top in (0, 8)
        for left in (0, 12)
        for y in (0, 4)
        for x in (0, 4, 8)
    ]
    assert torch.equal(recovered, torch.stack(squares))


def test_gray_channel() -> None:
    layout = PixelLayout.tiles(4, 8, 8, (0.5,), (0.5,))
    image = make_image(8, 8, kind="noise")[:1]
    assert torch.equal(
        layout.recover(make_pixel_values(image, layout)).view(2, 2, 4, 4).permute(0, 2, 1, 3),
        image.view(2, 4, 2, 4),
    )


def test_channels_last_by_hand() -> None:
    """The general description: pixels interleaved, cells of 2 x 3 pixels, a stride between rows."""
    layout = PixelLayout(
        shape=(4, 6, 3),
        cell_sizes=(2, 2),
        cell_strides=(72, 36, 9),
        pixel_sizes=(1, 2, 3),
        pixel_strides=(0, 18, 3),
        channels=3,
        channel_stride=1,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    levels = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8)
    values = (levels / 255.0 - 0.5) / 0.25
    recovered = layout.recover(values)
    expected = levels.view(5, 2, 2, 2, 3, 3).permute(0, 1, 3, 5, 2, 4).reshape(20, 3, 6)
    assert torch.equal(recovered, expected)
    assert_matches(
        patch_entropy_from_pixels(values, layout, backend="native"),
        patch_entropy_from_pixels(values, layout, backend="reference"),
    )


GOOD = {
    "shape": (3, 4, 4),
    "cell_sizes": (2, 2),
    "cell_strides": (48, 8, 2),
    "pixel_sizes": (1, 2, 2),
    "pixel_strides": (0, 4, 1),
    "channels": 3,
    "channel_stride": 16,
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, "channels: expected 1 or 3, got 2"),
        ({"mean": (0.5,)}, r"mean: expected 3 values, got \(0.5,\)"),
        ({"std": (0.5,) * 4}, "std: expected 3 values"),
        ({"std": (0.5, 0.0, 0.5)}, "std: expected positive values"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"cell_sizes": (2, 0)}, "cell_sizes: expected sizes of at least 1"),
        ({"pixel_sizes": (0, 2, 2)}, "pixel_sizes: expected sizes of at least 1"),
        ({"channel_stride": 17}, "cell_strides: expected an outermost stride of at least 50"),
        ({"channel_stride": -16}, "channel_stride: expected strides of at least 0"),
        ({"cell_strides": (48, -8, 2)}, "cell_strides: expected strides of at least 0"),
    ],
)
def test_bad_layouts(change: dict[str, object], message: str) -> None:
    PixelLayout(**GOOD)
    with pytest.raises(ValueError, match=message):
        PixelLayout(**{**GOOD, **change})


def test_bad_factories() -> None:
    with pytest.raises(ValueError, match="patch_size: expected at least 1, got 0"):
        PixelLayout.qwen(patch_size=0)
    with pytest.raises(TypeError, match="merge_size: expected an int, got float"):
        PixelLayout.qwen(merge_size=2.0)
    with pytest.raises(ValueError, match="height: expected a multiple of 28, got 30"):
        PixelLayout.tiles(28, 30, 28, CLIP_MEAN, CLIP_STD)


def test_layouts_are_values() -> None:
    assert PixelLayout.qwen() == PixelLayout.qwen()
    assert len({PixelLayout.qwen(), PixelLayout.qwen(), PixelLayout.qwen(16)}) == 2
    assert PixelLayout.qwen(16).cell_pixels == 1024
