"""patch_entropy on the device: the reference's bits, for every layout and way of counting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase_kernels import _numerics, patch_entropy
from erase_kernels.testing import assert_matches, cases, make_image
from erase_kernels.triton_kernels import _launch
from erase_kernels.triton_kernels import patch_entropy as kernels
from tests import entropy_oracle
from tests.device.support import BACKENDS, DEVICE, ON_GPU, back, put, run
from tests.selection import Banded, check_compiled, check_opcheck
from tests.test_luma import all_triples, fragile_colors
from tests.test_patch_entropy import strided_views

PATCHES = [1, 5, 14, 28, 32, *((2, 3, 7, 13, 16, 33, 36, 61, 100, 200) if ON_GPU else ())]
METHODS = (0, 1, 2) if ON_GPU else (0,)
CUDA_BACKENDS = [name for name in BACKENDS if name != "triton"]


def entropies(images: Tensor | list[Tensor], patch: int, backend: str) -> Tensor:
    return run(patch_entropy, images, patch, backend=backend, ran="patch_entropy")


def assert_entropies(images: Tensor | list[Tensor], patch: int, backend: str) -> None:
    expected = patch_entropy(images, patch, backend="reference")
    assert_matches(entropies(images, patch, backend), expected)


def every_level(patch: int, cells: int) -> Tensor:
    """Cells whose levels are as many as possible, each in another order."""
    levels = torch.arange(patch * patch) % 256
    rows = [levels[torch.randperm(patch * patch)].view(patch, patch) for _ in range(cells)]
    return torch.cat(rows, 1).to(torch.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("patch", PATCHES)
def test_batch_of_sizes_and_layouts(patch: int, backend: str, poisoned) -> None:
    image = make_image(2 * patch, 3 * patch, kind="noise", seed=patch)
    images = [
        image,
        make_image(patch, patch),  # a single cell
        image[0],
        image[:1],
        image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        image[:, patch:, :patch],
        every_level(patch, 2),
    ]
    expected = patch_entropy(images, patch, backend="reference")
    images.insert(3, image[:, :0])  # no cell at all
    assert_matches(entropies(images, patch, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_cells(backend: str) -> None:
    images = [torch.full((28, 56), level, dtype=torch.uint8) for level in (0, 1, 127, 128, 255)]
    images.append(make_image(28, 28, kind="flat"))
    result = entropies(images, 28, backend)
    assert result.tolist() == [0.0] * 11
    assert not torch.signbit(result).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_level_once_is_ln_256(backend: str) -> None:
    result = entropies(every_level(16, 2), 16, backend)
    assert result.tolist() == [np.float32(np.log(256))] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["hwc", "rgba", "transposed", "every other", "gap"])
@pytest.mark.parametrize("patch", [7, 28])
def test_strides(name: str, patch: int, backend: str) -> None:
    image = make_image(patch, 2 * patch, kind="noise", seed=patch)
    view = strided_views(image)[name]
    expected = patch_entropy([image, image[1]], patch, backend="reference")
    assert_matches(entropies([view, view[1]], patch, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gray_value_for_all_channels(backend: str) -> None:
    gray = make_image(28, 28, kind="noise")[:1]
    assert_entropies(gray.expand(3, 28, 28), 28, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hwc", [False, True])
@pytest.mark.parametrize("side", [1, 9, 28])
def test_reads_nothing_else(side: int, hwc: bool, backend: str) -> None:
    """Other levels all around change nothing."""
    image = make_image(side, side, kind="noise", seed=side)
    banded = Banded(image.permute(1, 2, 0).contiguous() if hwc else image)
    view = banded.view.permute(2, 0, 1) if hwc else banded.view
    assert_matches(entropies(view, side, backend), patch_entropy(image, side, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [2, 4, 5, *((16, 17, 64, 65, 200) if ON_GPU else ())])
def test_more_images_than_a_launch_was_made_for(count: int, backend: str, monkeypatch) -> None:
    if not ON_GPU:  # where 64 images take long
        monkeypatch.setattr(kernels, "BUCKETS", (1, 2, 4))
    sides = torch.randint(1, 4, (count, 2), generator=torch.Generator().manual_seed(count))
    images = [
        make_image(2 * height, 2 * width, kind="noise", seed=seed)
        for seed, (height, width) in enumerate(sides.tolist())
    ]
    assert_entropies(images, 2, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cells", [2, 3, 4])
def test_cells_of_a_program_end_a_row(cells: int, backend: str) -> None:
    """Programs take CELLS cells, whatever rows they are in; the last one takes the rest."""
    config = _launch.config("patch_entropy", "few", _launch.architecture(DEVICE))
    image = make_image(35, 21, kind="noise")
    with _launch.forced("patch_entropy", {**config.arguments(), "CELLS": cells}):
        assert_entropies(image, 7, backend)


@pytest.mark.parametrize("settings", [{"QUADS": 32}, {"QUADS": 64}, {"QUADS": 256}])
@pytest.mark.parametrize("patch", [13, 36])
def test_ballots(patch: int, settings: dict[str, int]) -> None:
    """The way of counting that any number of warps can take."""
    options = {"num_warps": settings["QUADS"] // 32, "num_stages": 1, "CELLS": 2, "METHOD": 0}
    with _launch.forced("patch_entropy", {**settings, **options}):
        assert_entropies([make_image(patch, 2 * patch)], patch, "triton")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["scene", "noise", "flat"])
def test_ways_of_counting(kind: str, method: int) -> None:
    settings = {"num_warps": 1, "num_stages": 1, "CELLS": 3, "QUADS": 32, "METHOD": method}
    with _launch.forced("patch_entropy", settings):
        for patch in (3, 28):
            image = make_image(patch, 4 * patch, kind=kind, seed=patch)
            hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
            assert_entropies([image, hwc, every_level(patch, 2)], patch, "triton")


# --- luma --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colors() -> Tensor:
    """uint8 ``[3, n]``: every colour, or those that another rounding would change."""
    if ON_GPU:
        return torch.from_numpy(all_triples().reshape(3, -1))
    return torch.from_numpy(fragile_colors()[:, ::8])


def known_colors() -> np.ndarray:
    """uint8 ``[3, 256]``: a colour of each gray level."""
    blue = np.arange(256).repeat(3)  # with these reds and greens, every level is there
    sample = np.stack([blue, np.clip(blue + np.tile([0, 1, 2], 256), 0, 255), blue])
    gray = entropy_oracle.luma(*sample.astype(np.uint8))
    assert set(gray.tolist()) == set(range(256))
    return sample[:, [np.argmax(gray == level) for level in range(256)]].astype(np.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hwc", [False, True])
def test_luma_of_every_color(hwc: bool, backend: str, colors: Tensor) -> None:
    """Beside each colour stands one whose level is known: the entropy says whether they agree."""
    expected = entropy_oracle.luma(*colors.numpy())
    known = torch.from_numpy(known_colors()[:, expected])
    # A cell of 4 x 4: a colour and its known twin, and 14 times another known colour, which is
    # black or white: whichever is far from this colour.
    other = torch.where(torch.from_numpy(expected) < 128, 255, 0).to(torch.uint8)
    for start in range(0, colors.shape[1], 1 << 20):
        part = slice(start, start + (1 << 20))
        cells = other[part].repeat(3, 4, 4, 1)  # channel, row, column, cell
        cells[:, 1, 2], cells[:, 2, 1] = colors[:, part], known[:, part]
        image = cells.permute(0, 1, 3, 2).reshape(3, 4, -1)  # cells side by side
        if hwc:
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        result = entropies(image, 4, backend)
        p = np.array([2, 14]) / 16
        assert torch.allclose(result, torch.tensor(-(p * np.log(p)).sum()).float(), atol=1e-6)


@pytest.fixture(scope="module")
def every_color() -> tuple[Tensor, Tensor]:
    """uint8 ``[3, 4096, 4096]``, and the histograms of its cells of 64 x 64."""
    image = all_triples()
    gray = entropy_oracle.luma(*image).reshape(64, 64, 64, 64)
    blocks = torch.from_numpy(gray).permute(0, 2, 1, 3).reshape(4096, -1).long()
    counts = torch.zeros(4096, 256, dtype=torch.int64)
    return torch.from_numpy(image), counts.scatter_add_(1, blocks, torch.ones_like(blocks))


@pytest.mark.parametrize("backend", BACKENDS if ON_GPU else CUDA_BACKENDS)  # millions of pixels
@pytest.mark.parametrize("hwc", [False, True])
def test_levels_of_every_color(hwc: bool, backend: str, every_color) -> None:
    """A table that singles out one count turns the entropy into a readout of the histogram."""
    image, counts = every_color
    if hwc:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    image = put(image)
    table = torch.zeros(64 * 64 + 1, dtype=torch.int64)
    operator = getattr(torch.ops.erase_kernels, f"patch_entropy_{backend}")
    for count in (1, 2, 5, 16, 100):
        table.zero_()[count] = -(2**40)
        got = operator([image], 64, put(table))
        assert back(got).tolist() == (counts == count).sum(1).tolist()


# --- anything, torch.compile, opcheck ----------------------------------------------------------


@settings(max_examples=100 if ON_GPU else 8, deadline=None)
@given(
    patch=st.integers(1, 40 if ON_GPU else 12),
    rows=st.integers(1, 3),
    columns=st.integers(1, 4),
    channels=st.sampled_from([0, 1, 3]),
    levels=st.integers(1, 256),
    seed=st.integers(0, 2**31),
)
def test_any_size(patch, rows, columns, channels, levels, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * patch, columns * patch)
    shape = (channels, *shape) if channels else shape
    image = torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8)
    for backend in BACKENDS:
        assert_entropies(image, patch, backend)


NAMED = [case for case in cases("patch_entropy") if ON_GPU or case.name == "one_cell"]


@pytest.mark.parametrize("case", NAMED, ids=lambda c: c.name)
def test_named_shapes(case) -> None:
    image = make_image(case.sizes["height"], case.sizes["width"])
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for backend in BACKENDS:
        assert_entropies([image, hwc], case.sizes["patch_size"], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cells(backend: str) -> None:
    assert entropies(torch.empty(3, 0, 28, dtype=torch.uint8), 28, backend).shape == (0,)


def test_opcheck() -> None:
    images = [make_image(10, 15), make_image(5, 5, hwc=True), make_image(5, 10)[0]]
    check_opcheck("patch_entropy_triton", put(images), 5, put(_numerics.entropy_table(25)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(backend: str) -> None:
    image = put(make_image(10, 15))

    def doubled(x: Tensor) -> Tensor:
        return patch_entropy(x, 5, backend=backend) * 2

    assert_matches(back(check_compiled(doubled, image)), back(doubled(image)))


def test_configurations_fit_their_ways_of_counting() -> None:
    """Tensor cores want one warp and 32 quads; bits want them in hardware."""
    for name in ("patch_entropy", "patch_entropy_from_pixels"):
        for by_architecture in json.loads((_launch.CONFIGS / f"{name}.json").read_text()).values():
            for architecture, config in by_architecture.items():
                if config["METHOD"] != 0:
                    assert (config["num_warps"], config["QUADS"]) == (1, 32)
                assert config["METHOD"] != 2 or int(architecture) <= 90


def test_access() -> None:
    """Which images may be read in words."""
    image = make_image(28, 56)
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = [
        (image, 28, kernels.PLANES),
        (image, 14, kernels.ANY_STRIDES),  # cells do not begin at words
        (image[1], 28, kernels.PLANES),
        (make_image(28, 30)[:, :, 1:29], 28, kernels.ANY_STRIDES),
        (make_image(28, 32)[:, :, 4:], 28, kernels.PLANES),
        (make_image(28, 32)[:, :, ::2], 4, kernels.ANY_STRIDES),
        (hwc, 28, kernels.ANY_STRIDES if _launch.INTERPRETED else kernels.TRIPLES),
        (hwc[:, :, 28:], 28, kernels.ANY_STRIDES if _launch.INTERPRETED else kernels.TRIPLES),
        (hwc[1], 28, kernels.ANY_STRIDES),
        (torch.empty_strided((28, 28), (2**27, 1), dtype=torch.uint8), 28, kernels.ANY_STRIDES),
    ]
    for view, patch, access in expected:
        assert kernels._Image(view, patch, 0).access == access.value, (view.stride(), patch)
    assert math.prod(image.shape) == 28 * 56 * 3
