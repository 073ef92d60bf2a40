"""patch_entropy_from_pixels: the entropies of the image a processor started from, to the bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import PixelLayout, _numerics, patch_entropy, patch_entropy_from_pixels
from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD, INTEGER_TOLERANCE
from erase_kernels.testing import (
    assert_matches,
    make_image,
    make_pixel_values,
    record_ops,
)
from tests.selection import BACKENDS, Banded, check_compiled, check_opcheck

QWEN = PixelLayout.qwen()
TILES = PixelLayout.tiles(28, 56, 84, CLIP_MEAN, CLIP_STD)
EXACT = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", ["scene", "noise", "flat"])
def test_equals_the_image(kind: str, dtype: torch.dtype, poisoned) -> None:
    image = make_image(84, 112, kind=kind)
    values = make_pixel_values(image, QWEN).to(dtype)
    expected = patch_entropy(image, 28, backend="reference")
    with record_ops() as ops:
        native = patch_entropy_from_pixels(values, QWEN, backend="native")
    assert ops == ["erase_kernels::patch_entropy_from_pixels_native"]
    assert_matches(native, expected)
    assert_matches(patch_entropy_from_pixels(values, QWEN, backend="reference"), expected)


def test_bfloat16_is_nearly_the_image() -> None:
    image = make_image(84, 112)
    values = make_pixel_values(image, QWEN).to(torch.bfloat16)
    native = patch_entropy_from_pixels(values, QWEN, backend="native")
    assert_matches(native, patch_entropy_from_pixels(values, QWEN, backend="reference"))
    assert (native - patch_entropy(image, 28)).abs().max() < 0.5  # levels off by one, a bin split


@pytest.mark.parametrize("dtype", [*EXACT, torch.bfloat16])
@pytest.mark.parametrize("cell", [1, 3, 7, 28])
def test_tiles(cell: int, dtype: torch.dtype) -> None:
    layout = PixelLayout.tiles(cell, 2 * cell, 5 * cell, (0.5,) * 3, (0.5,) * 3)
    image = make_image(4 * cell, 10 * cell, kind="noise", seed=cell)
    values = make_pixel_values(image, layout).to(dtype)
    tiles = [
        image[:, top : top + 2 * cell, left : left + 5 * cell]
        for top in (0, 2 * cell)
        for left in (0, 5 * cell)
    ]
    native = patch_entropy_from_pixels(values, layout, backend="native")
    assert_matches(native, patch_entropy(tiles, cell, backend="reference"))
    assert_matches(native, patch_entropy_from_pixels(values, layout, backend="reference"))


@pytest.mark.parametrize("columns", [1, 36, 37, 80])
def test_tiles_wider_than_a_block(columns: int) -> None:
    layout = PixelLayout.tiles(28, 28, 28 * columns, CLIP_MEAN, CLIP_STD)
    image = make_image(28, 28 * columns, kind="noise")
    values = make_pixel_values(image, layout)
    assert_matches(patch_entropy_from_pixels(values, layout), patch_entropy(image, 28))


def test_a_cell_counted_in_several_passes() -> None:
    layout = PixelLayout.tiles(260, 260, 260, (0.5,), (0.5,))
    image = make_image(260, 260)[:1]
    values = make_pixel_values(image, layout)
    assert_matches(patch_entropy_from_pixels(values, layout), patch_entropy(image, 260))


def test_long_runs_of_one_cell() -> None:
    """A 64-pixel patch is one contiguous run of 4 096 values: longer than a pass and a chunk."""
    layout = PixelLayout.qwen(patch_size=64, merge_size=1, temporal_patch_size=1)
    image = make_image(64, 128, kind="scene")
    image[:, :, :64] = 200
    values = make_pixel_values(image, layout)
    assert_matches(patch_entropy_from_pixels(values, layout), patch_entropy(image, 64))


@settings(max_examples=40, deadline=None)
@given(
    patch=st.integers(1, 15),
    merge=st.integers(1, 3),
    temporal=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    dtype=st.sampled_from([*EXACT, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_any_qwen_layout(patch, merge, temporal, rows, columns, dtype, seed) -> None:
    layout = PixelLayout.qwen(patch, merge, temporal)
    side = patch * merge
    image = make_image(rows * side, columns * side, kind="noise", seed=seed)
    values = make_pixel_values(image, layout).to(dtype)
    native = patch_entropy_from_pixels(values, layout, backend="native")
    assert_matches(native, patch_entropy_from_pixels(values, layout, backend="reference"))
    if dtype != torch.bfloat16:
        assert_matches(native, patch_entropy(image, side))


def general_case(sizes: list[int], order: list[int], seed: int) -> tuple[Tensor, PixelLayout]:
    """Values and layout whose loops (cells j k, pixels s r c, channel) lie in any memory order."""
    strides, extent = [0] * 6, 1
    for loop in reversed(order):
        strides[loop] = extent
        extent *= sizes[loop]
    layout = PixelLayout(
        shape=(extent,),
        cell_sizes=(sizes[0], sizes[1]),
        cell_strides=(extent, strides[0], strides[1]),
        pixel_sizes=(sizes[2], sizes[3], sizes[4]),
        pixel_strides=(strides[2], strides[3], strides[4]),
        channels=sizes[5],
        channel_stride=strides[5],
        mean=(0.4, 0.5, 0.6)[: sizes[5]],
        std=(0.3, 0.2, 0.25)[: sizes[5]],
    )
    generator = torch.Generator().manual_seed(seed)
    cells = (2, sizes[0], sizes[1])
    levels = torch.randint(0, 40, (*cells, *sizes[2:]), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor(layout.mean), torch.tensor(layout.std)
    values = (levels / 255.0 - mean) / std
    return values.permute(0, *(loop + 1 for loop in order)).reshape(2, extent), layout


@settings(max_examples=60, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pixels=st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 7, 300])),
    channels=st.sampled_from([1, 3]),
    order=st.permutations(range(6)),
    seed=st.integers(0, 2**31),
)
def test_any_memory_order(cells, pixels, channels, order, seed) -> None:
    values, layout = general_case([*cells, *pixels, channels], list(order), seed)
    native = patch_entropy_from_pixels(values, layout, backend="native")
    assert_matches(native, patch_entropy_from_pixels(values, layout, backend="reference"))


@pytest.mark.parametrize("layout", [QWEN, TILES], ids=["qwen", "tiles"])
def test_reads_inside_its_bounds(layout: PixelLayout) -> None:
    values = make_pixel_values(make_image(56, 84, kind="noise"), layout)
    expected = patch_entropy_from_pixels(values, layout)
    base = torch.full((values.numel() + 200,), math.nan)
    base[100:-100] = values.reshape(-1)
    inside = base[100:-100].view(values.shape)
    assert_matches(patch_entropy_from_pixels(inside, layout, backend="native"), expected)
    assert base[:100].isnan().all()
    assert base[-100:].isnan().all()
    assert torch.equal(inside, values)


def test_other_strides_are_copied() -> None:
    values = make_pixel_values(make_image(56, 84, kind="noise"), TILES)
    banded = Banded(values)
    for backend in BACKENDS:
        got = patch_entropy_from_pixels(banded.view, TILES, backend=backend)
        assert_matches(got, patch_entropy_from_pixels(values, TILES))
    assert banded.intact()


def test_threads_do_not_change_results(threads) -> None:
    values = make_pixel_values(make_image(112, 168), QWEN)
    results = threads(lambda: patch_entropy_from_pixels(values, QWEN))
    for result in results[1:]:
        assert_matches(result, results[0])


def test_no_rows() -> None:
    for backend in BACKENDS:
        assert patch_entropy_from_pixels(torch.empty(0, 1176), QWEN, backend=backend).shape == (0,)


def test_gradients_do_not_flow() -> None:
    values = make_pixel_values(make_image(28, 28), QWEN).requires_grad_()
    for backend in BACKENDS:
        assert not patch_entropy_from_pixels(values, QWEN, backend=backend).requires_grad


PATHS_SCRIPT = """
import sys, torch, erase_kernels as ek
from erase_kernels.testing import assert_matches, make_image, make_pixel_values
assert ek.backend_info().cpu_clone == sys.argv[1]
mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
layouts = [ek.PixelLayout.qwen(p, m, 2) for p in (1, 5, 14) for m in (1, 2)]
layouts += [ek.PixelLayout.tiles(c, 2 * c, 3 * c, mean, std) for c in (1, 5, 28)]
layouts += [ek.PixelLayout.tiles(5, 10, 15, (0.5,), (0.5,))]
for layout in layouts:
    side = round(layout.cell_pixels ** 0.5)
    image = make_image(2 * side, 3 * side, kind="noise")[: layout.channels]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        values = make_pixel_values(image, layout).to(dtype)
        native = ek.patch_entropy_from_pixels(values, layout, backend="native")
        assert_matches(native, ek.patch_entropy_from_pixels(values, layout, backend="reference"))
        values.view(-1)[0] = float("nan")
        try:
            ek.patch_entropy_from_pixels(values, layout, backend="native")
        except ValueError as error:
            assert "pixel_values" in str(error)
        else:
            raise AssertionError("NaN was accepted")
print("same")
"""


@pytest.mark.parametrize("clone", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(clone: str, supported_clones: set[str]) -> None:
    if clone not in supported_clones:
        pytest.skip(f"this processor has no {clone}")
    done = subprocess.run(
        [sys.executable, "-c", PATHS_SCRIPT, clone],
        env={**os.environ, "ERASE_KERNELS_CPU_CLONE": clone},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr


# --- torch.compile, opcheck --------------------------------------------------------------------


def arguments(values: Tensor, layout: PixelLayout) -> tuple[object, ...]:
    table = _numerics.entropy_table(layout.cell_pixels)
    geometry = (layout.cell_sizes, layout.cell_strides, layout.pixel_sizes, layout.pixel_strides)
    lists = [list(part) for part in geometry]
    statistics = (layout.channel_stride, list(layout.mean), list(layout.std), layout.scale)
    return (values, table, *lists, *statistics, INTEGER_TOLERANCE[values.dtype])


@pytest.mark.parametrize("layout", [QWEN, TILES], ids=["qwen", "tiles"])
def test_opcheck(layout: PixelLayout) -> None:
    values = make_pixel_values(make_image(56, 84), layout)
    check_opcheck("patch_entropy_from_pixels_native", *arguments(values, layout))


def test_the_operator_checks_for_itself() -> None:
    values = make_pixel_values(make_image(56, 84), TILES)
    good = list(arguments(values, TILES))
    op = torch.ops.erase_kernels.patch_entropy_from_pixels_native
    op(*good)
    for position, bad, message in [
        (0, values.double(), "pixel_values"),
        (0, values.mT, "pixel_values"),
        (1, good[1][:-1], "table"),
        (2, [2], "cell_sizes"),
        (2, [2, 4], "layout"),
        (3, [14112, 2352], "cell_strides"),
        (4, [1, 28], "pixel_sizes"),
        (4, [1, 28, 29], "layout"),
        (5, [0, 84], "pixel_strides"),
        (5, [0, 84, -1], "layout"),
        (6, 5000, "layout"),
        (7, [0.5, 0.5], "mean"),
        (8, [0.5], "std"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*good[:position], bad, *good[position + 1 :])


def test_compiled() -> None:
    values = make_pixel_values(make_image(56, 84), QWEN)

    def doubled(x: Tensor) -> Tensor:
        return patch_entropy_from_pixels(x, QWEN) * 2

    assert_matches(check_compiled(doubled, values), doubled(values))


def test_compiled_reference() -> None:
    values = make_pixel_values(make_image(28, 56), QWEN)
    compiled = torch.compile(
        lambda x: patch_entropy_from_pixels(x, QWEN, backend="reference"), fullgraph=True
    )
    assert_matches(compiled(values), patch_entropy_from_pixels(values, QWEN))
    with pytest.raises(RuntimeError, match="pixel_values: expected normalised"):
        compiled(values * 1.01)
