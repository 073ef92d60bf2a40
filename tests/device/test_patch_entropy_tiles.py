"""The entropy operators' C++ kernels: tiles of any width, units of any size, launches."""

from __future__ import annotations

import pytest
import torch

from erase_kernels import PixelLayout, patch_entropy
from erase_kernels.testing import assert_matches, make_image, make_pixel_values
from tests.device.test_patch_entropy import CUDA_BACKENDS, assert_entropies, entropies
from tests.device.test_patch_entropy_from_pixels import DTYPES, EXACT, HALVES, scene_of
from tests.device.test_patch_entropy_from_pixels import assert_entropies as assert_pixel_entropies


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("patch", [2, 3, 12, 13, 16, 33, 61, 100, 200, 1028, 1029])
def test_every_patch_size(patch: int, backend: str) -> None:
    """Lines of one unit to lines of more units than a block has threads."""
    image = make_image(patch, patch * (4 if patch < 256 else 1), kind="noise", seed=patch)
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert_entropies([image, hwc, image[:1]], patch, backend)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize(
    ("patch", "rows", "columns"),
    [
        (4, 61, 67),  # tiles of 2 cells, words
        (12, 61, 68),  # tiles of 4 cells, 16 bytes that cross cells
        (12, 91, 92),  # tiles of 8 cells, half a one at the end
        (8, 2050, 4),  # half a tile of 8 cells in each row
        (4, 90, 93),  # words, tiles of 8 and 5 cells
        (5, 90, 93),  # bytes
    ],
)
def test_tiles_of_many_cells(patch: int, rows: int, columns: int, backend: str) -> None:
    image = make_image(patch * rows, patch * columns, kind="noise", seed=patch)
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert_entropies([image, hwc[:, : 2 * patch], image[0]], patch, backend)
    assert_entropies(hwc, patch, backend)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 12])
@pytest.mark.parametrize("hwc", [False, True])
def test_any_alignment(offset: int, hwc: bool, backend: str) -> None:
    """Images that begin anywhere, with others' bytes around them."""
    image = make_image(32, 64, kind="noise", seed=1)
    stored = image.permute(1, 2, 0).contiguous() if hwc else image
    base = torch.full((stored.numel() + 64,), 77, dtype=torch.uint8)
    view = base[16 + offset :][: stored.numel()].view(stored.shape)
    view.copy_(stored)
    view = view.permute(2, 0, 1) if hwc else view
    expected = patch_entropy(image, 32, backend="reference")
    assert_matches(entropies(view, 32, backend), expected)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_more_images_than_a_launch_takes(backend: str) -> None:
    images = [
        make_image(4 * (1 + seed % 3), 4 * (1 + seed % 5), kind="noise", seed=seed)
        for seed in range(97)
    ]
    images[::7] = [image[0] for image in images[::7]]
    assert_entropies(images, 4, backend)


# --- from pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(7, 2, 2), (13, 1, 2), (14, 2, 1), (64, 1, 1), (65, 1, 1)])
def test_lines_of_any_length(size: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    """One quad to more quads than a block has threads."""
    layout = PixelLayout.qwen(*size)
    assert_pixel_entropies(scene_of(layout).to(dtype), layout, backend)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(
    ("cell", "rows", "columns"),
    [(3, 41, 53), (4, 61, 68), (4, 91, 93), (300, 1, 2)],
)
def test_pixels_of_many_cells(
    cell: int, rows: int, columns: int, dtype: torch.dtype, backend: str
) -> None:
    """Tiles of 2, 4 and 8 cells that end anywhere, and a cell of more lines than are kept."""
    layout = PixelLayout.tiles(cell, cell * rows, cell * columns, *HALVES)
    image = make_image(cell * rows, cell * columns, kind="noise", seed=cell)
    assert_pixel_entropies(make_pixel_values(image, layout).to(dtype), layout, backend)
