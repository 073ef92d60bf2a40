"""patch_entropy_from_pixels on the device: the reference's bits, and every value checked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import PixelLayout, check_status, patch_entropy_from_pixels
from erase_kernels._status import Status, status_word
from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD, INTEGER_TOLERANCE
from erase_kernels.testing import assert_matches, cases, make_image, make_pixel_values
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels import patch_entropy_from_pixels as kernels
from tests.device.support import BACKENDS, DEVICE, ON_GPU, back, put, run
from tests.selection import Banded, check_compiled, check_opcheck
from tests.test_luma import fragile_colors
from tests.test_patch_entropy_from_pixels import arguments, general_case

QWEN = PixelLayout.qwen()
HALVES = ((0.5,) * 3, (0.5,) * 3)
STATISTICS = [(CLIP_MEAN, CLIP_STD), HALVES, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EXACT = DTYPES[:2]


def entropies(values: Tensor, layout: PixelLayout, backend: str, check: bool = True) -> Tensor:
    operator = "patch_entropy_from_pixels"
    return run(
        patch_entropy_from_pixels, values, layout, backend=backend, ran=operator, check=check
    )


def assert_entropies(values: Tensor, layout: PixelLayout, backend: str) -> None:
    expected = patch_entropy_from_pixels(values, layout, backend="reference")
    assert_matches(entropies(values, layout, backend), expected)


def qwen_sizes() -> list[PixelLayout]:
    sizes = [(1, 1, 1), (1, 2, 2), (5, 2, 2), (14, 2, 2), (16, 2, 2)]
    sizes += [(7, 2, 2), (13, 1, 2), (14, 1, 2), (14, 2, 1), (64, 1, 1)] if ON_GPU else []
    return [PixelLayout.qwen(*size) for size in sizes]


def tile_sizes() -> list[PixelLayout]:
    sides = [1, 5, 28, *((3, 7, 14, 16, 32, 36, 61, 200) if ON_GPU else (36,))]
    layouts = [PixelLayout.tiles(side, side, 2 * side, *HALVES) for side in sides]
    return [*layouts, PixelLayout.tiles(8, 16, 24, (0.4,), (0.3,))]


def side_of(layout: PixelLayout) -> int:
    return math.isqrt(layout.cell_pixels)


def scene_of(layout: PixelLayout, kind: str = "noise") -> Tensor:
    """Values of a few cells."""
    side = side_of(layout)
    height, width = layout.shape[-2:] if len(layout.shape) == 3 else (side, 2 * side)
    image = make_image(2 * height, width, kind=kind, seed=side)[: layout.channels]
    return make_pixel_values(image, layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", qwen_sizes(), ids=lambda x: f"qwen{x.pixel_sizes}")
def test_qwen(layout: PixelLayout, dtype: torch.dtype, backend: str, poisoned) -> None:
    assert_entropies(scene_of(layout).to(dtype), layout, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", tile_sizes(), ids=lambda x: f"tiles{x.pixel_sizes[1:]}")
def test_tiles(layout: PixelLayout, dtype: torch.dtype, backend: str, poisoned) -> None:
    assert_entropies(scene_of(layout).to(dtype), layout, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_cells(backend: str) -> None:
    result = entropies(scene_of(QWEN, "flat"), QWEN, backend)
    assert result.tolist() == [0.0] * 4
    assert not torch.signbit(result).any()


def as_stored(levels: Tensor, layout: PixelLayout, dtype: torch.dtype) -> Tensor:
    """What a processor makes of uint8 ``[C, n]``, as ``[C, n]``."""
    mean, std = torch.tensor(layout.mean)[:, None], torch.tensor(layout.std)[:, None]
    return ((levels.float() / 255 - mean) / std).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("statistics", range(len(STATISTICS)))
def test_every_level_of_every_channel(statistics: int, dtype: torch.dtype, backend: str) -> None:
    """256 levels in a cell: the reference's gray levels, and ln 256 for each channel by itself."""
    mean, std = STATISTICS[statistics]
    levels = torch.arange(256)
    for channel in range(3):
        layout = PixelLayout.tiles(16, 16, 16, mean[channel : channel + 1], std[channel:][:1])
        values = as_stored(levels[None], layout, dtype).view(1, 1, 16, 16)
        assert_entropies(values, layout, backend)
        if dtype in EXACT:
            ln256 = torch.tensor(256.0, dtype=torch.float64).log().float()
            assert entropies(values, layout, backend) == ln256
    layout = PixelLayout.tiles(16, 16, 16, mean, std)
    orders = torch.stack([torch.randperm(256) for _ in range(3)])
    values = as_stored(orders, layout, dtype).view(1, 3, 16, 16)
    assert_entropies(values, layout, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", EXACT)
def test_fragile_colors(dtype: torch.dtype, backend: str) -> None:
    """Colours whose gray level another rounding would change."""
    colors = torch.from_numpy(fragile_colors())[:, : 4096 if ON_GPU else 128]
    n = colors.shape[1] // 4 * 4
    layout = PixelLayout.tiles(2, 2, n // 2, CLIP_MEAN, CLIP_STD)
    image = colors[:, :n].reshape(3, 2, n // 2)
    assert_entropies(make_pixel_values(image, layout).to(dtype), layout, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temporal", [1, 2, 3])
def test_only_what_the_layout_names_is_read(temporal: int, backend: str) -> None:
    """The other temporal slots, and everything around, may hold anything."""
    layout = PixelLayout.qwen(6, 2, temporal)
    values = make_pixel_values(make_image(12, 24, kind="noise"), layout)
    expected = patch_entropy_from_pixels(values, layout, backend="reference")
    values.view(-1, 3, temporal, 36)[:, :, 1:] = math.nan
    base = torch.full((values.numel() + 64,), math.nan)
    base[32:-32] = values.reshape(-1)
    assert_matches(entropies(base[32:-32].view(values.shape), layout, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_any_alignment(shift: int, backend: str) -> None:
    values = scene_of(QWEN)
    base = torch.full((values.numel() + 8,), math.nan)
    view = base[shift : shift + values.numel()].view(values.shape)
    view.copy_(values)
    assert_entropies(view, QWEN, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_strides_are_copied(backend: str) -> None:
    layout = PixelLayout.tiles(4, 8, 8, *HALVES)
    banded = Banded(scene_of(layout))
    assert_entropies(banded.view, layout, backend)


# --- values that are no gray levels ------------------------------------------------------------


def places(layout: PixelLayout) -> list[tuple[int, int]]:
    """First, last and some inner value of the first and last cell: (cell, element)."""
    reach = sum((n - 1) * s for n, s in zip(layout.pixel_sizes, layout.pixel_strides, strict=True))
    last = reach + (layout.channels - 1) * layout.channel_stride
    return [(0, 0), (-1, reach), (-1, last), (0, layout.channel_stride)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [QWEN, PixelLayout.qwen(5, 2, 2)], ids=["words", "bytes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_values_are_noticed(dtype: torch.dtype, layout: PixelLayout, backend: str) -> None:
    good = scene_of(layout).to(dtype)
    step = 1 / 255 / layout.std[0]
    bad = [(math.nan, True), (math.inf, dtype != torch.bfloat16)]
    bad += [(0.5 * step, True), (-0.3 * step, True)] if dtype == torch.float32 else []
    for place, (cell, element) in enumerate(places(layout)):
        value, noticed = bad[place % len(bad)]
        values = good.clone()
        flat = values.view(-1, layout.cell_strides[0])
        flat[cell, element] = value if not math.isfinite(value) else flat[cell, element] + value
        if not noticed:
            entropies(values, layout, backend)
            continue
        with pytest.raises(ValueError, match="pixel_values: expected normalised uint8"):
            entropies(values, layout, backend)
        check_status(DEVICE)  # the word is clean again


@pytest.mark.parametrize("backend", [name for name in BACKENDS if ON_GPU or name != "native"])
def test_status_bit(backend: str) -> None:
    values = scene_of(QWEN)
    values[0, 0] = math.nan
    entropies(values, QWEN, backend, check=False)
    assert back(status_word(DEVICE)).tolist() == [Status.PIXELS]
    with pytest.raises(ValueError, match="pixel_values"):
        check_status(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", EXACT)
def test_tolerance(dtype: torch.dtype, backend: str) -> None:
    """Distances just inside and outside of what is accepted, on either side of a level."""
    layout = PixelLayout.tiles(2, 2, 2, (0.0,), (1.0,), scale=1.0)
    tolerance = INTEGER_TOLERANCE[dtype]
    for inside in (0.9 * tolerance, -0.9 * tolerance):
        values = torch.full((1, 1, 2, 2), 3 + inside, dtype=dtype)
        assert entropies(values, layout, backend).tolist() == [0.0]
    for outside in (1.1 * tolerance, -1.1 * tolerance):
        values[0, 0, 1, 1] = 3 + outside
        with pytest.raises(ValueError, match="pixel_values"):
            entropies(values, layout, backend)
    values = torch.tensor([-0.009, 0.0, 255.009, 255.0], dtype=torch.float32).view(1, 1, 2, 2)
    assert_entropies(values, layout, backend)


# --- memory orders, anything -------------------------------------------------------------------


def test_joined_loops() -> None:
    """Longest stride first, and as few runs as there are."""
    for sizes, strides, expected in [
        ((4, 14, 14), (1176, 14, 1), ((1, 4, 196), (0, 1176, 1))),
        ((1, 28, 28), (0, 448, 1), ((1, 28, 28), (0, 448, 1))),
        ((2, 3, 4), (12, 4, 1), ((1, 1, 24), (0, 0, 1))),
        ((2, 3, 4), (1, 2, 6), ((1, 1, 24), (0, 0, 1))),
        ((2, 3, 4), (100, 30, 2), ((2, 3, 4), (100, 30, 2))),
        ((1, 1, 1), (0, 0, 1), ((1, 1, 1), (0, 0, 0))),
        ((2, 3, 4), (0, 0, 1), ((1, 6, 4), (0, 0, 1))),
    ]:
        got = kernels._joined(sizes, strides)
        assert sorted(zip(*got, strict=True)) == sorted(zip(*expected, strict=True))
        assert got[1] == tuple(sorted(got[1], reverse=True)) or 1 in got[0]


@settings(max_examples=100 if ON_GPU else 10, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pixels=st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 4, 7])),
    channels=st.sampled_from([1, 3]),
    order=st.permutations(range(6)),
    seed=st.integers(0, 2**31),
)
def test_any_memory_order(cells, pixels, channels, order, seed) -> None:
    values, layout = general_case([*cells, *pixels, channels], list(order), seed)
    for backend in BACKENDS:
        assert_entropies(values, layout, backend)


@pytest.mark.parametrize("method", (0, 1, 2) if ON_GPU else (0,))
def test_ways_of_counting(method: int) -> None:
    options = {"num_warps": 1, "num_stages": 1, "CELLS": 2, "QUADS": 32, "METHOD": method}
    with _launch.forced("patch_entropy_from_pixels", options):
        for layout in (PixelLayout.qwen(14, 2, 2), PixelLayout.tiles(36, 36, 36, *HALVES)):
            assert_entropies(scene_of(layout), layout, "triton")


if ON_GPU:  # thousands of cells

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", cases("patch_entropy_from_pixels"), ids=lambda c: c.name)
    def test_named_shapes(case, dtype: torch.dtype) -> None:
        tile, cell = case.sizes.get("tile", 448), case.sizes.get("cell", 28)
        tiles = PixelLayout.tiles(cell, tile, tile, CLIP_MEAN, CLIP_STD)
        layout = QWEN if case.sizes["layout"] == "qwen" else tiles
        image = make_image(case.sizes["height"], case.sizes["width"])
        values = make_pixel_values(image, layout).to(dtype)
        for backend in BACKENDS:
            assert_entropies(values, layout, backend)


# --- torch.compile, opcheck --------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    assert entropies(torch.empty(0, 1176), QWEN, backend).shape == (0,)


def test_opcheck() -> None:
    layout = PixelLayout.tiles(4, 4, 8, *HALVES)
    check_opcheck("patch_entropy_from_pixels_triton", *put(arguments(scene_of(layout), layout)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(backend: str) -> None:
    values = put(scene_of(QWEN))

    def doubled(x: Tensor) -> Tensor:
        return patch_entropy_from_pixels(x, QWEN, backend=backend) * 2

    assert_matches(back(check_compiled(doubled, values)), back(doubled(values)))
