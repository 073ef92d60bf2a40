"""patch_edges: the bits of a literal numpy version, whatever the image, its strides and chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from erase_kernels import choose_backend, patch_edges
from erase_kernels.ops import _edges
from erase_kernels.testing import assert_matches, make_image, record_ops
from tests.edges_oracle import cell_edges
from tests.selection import Banded, check_compiled, check_opcheck

BACKENDS = ("torch", "reference")


def assert_edges(image: Tensor, patch: int) -> Tensor:
    """Both backends equal numpy to the bit; returns the scores."""
    expected = torch.from_numpy(cell_edges(image.numpy(), patch))
    with record_ops() as ops:
        got = patch_edges(image, patch)
    assert ops == ["erase_kernels::patch_edges_torch"]
    assert_matches(got, expected)
    assert_matches(patch_edges(image, patch, backend="reference"), expected)
    return got


@pytest.mark.parametrize("patch", [1, 2, 3, 7, 13, 28, 33])
@pytest.mark.parametrize("kind", ["scene", "noise", "flat"])
def test_against_numpy(patch: int, kind: str) -> None:
    assert_edges(make_image(2 * patch, 3 * patch, kind=kind, seed=patch), patch)


def test_a_flat_cell_is_exactly_zero() -> None:
    for backend in BACKENDS:
        scores = patch_edges(make_image(56, 84, kind="flat"), 28, backend=backend)
        assert scores.tolist() == [0.0] * 6
        assert not torch.signbit(scores).any()


def test_a_single_step_is_its_height() -> None:
    """However few pixels it has; a slow ramp of the same range counts for little."""
    image = torch.full((9, 18), 20, dtype=torch.uint8)
    image[4, 3] = 200
    image[:, 9:] = torch.arange(20, 200, 20, dtype=torch.uint8)
    assert assert_edges(image, 9).tolist() == [180.0, 20.0]


def test_the_highest_score() -> None:
    checkers = torch.arange(16).view(4, 4) % 2 ^ torch.arange(4).view(4, 1) % 2
    assert assert_edges((checkers * 255).byte(), 4).tolist() == [255.0]


def test_neighbours_in_another_patch_do_not_count() -> None:
    image = torch.zeros(8, 8, dtype=torch.uint8)
    image[:4, 4:] = 90
    image[4:, :4] = 255
    assert assert_edges(image, 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_gray_images(backend: str) -> None:
    image = make_image(42, 28, kind="noise")
    expected = torch.from_numpy(cell_edges(image.numpy(), 14))
    interleaved = make_image(42, 28, kind="noise", hwc=True)
    assert interleaved.stride() != image.stride()
    for view in (interleaved, Banded(image).view, image.mT.contiguous().mT):
        assert_matches(patch_edges(view, 14, backend=backend), expected)
    gray = torch.from_numpy(cell_edges(image[1].numpy(), 14))
    for view in (image[1], image[1:2]):
        assert_matches(patch_edges(view, 14, backend=backend), gray)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_of_images(backend: str) -> None:
    images = [make_image(21, 14), make_image(7, 35, kind="noise")[0], make_image(14, 14, hwc=True)]
    with record_ops() as ops:
        got = patch_edges(images, 7, backend=backend)
    assert len(ops) == (backend == "torch")
    assert_matches(got, torch.cat([patch_edges(image, 7) for image in images]))
    empty = [images[0], torch.empty(3, 0, 14, dtype=torch.uint8)]
    assert_matches(patch_edges(empty, 7, backend=backend), patch_edges(images[0], 7))


@pytest.mark.parametrize("pixels", [1, 48, 49, 50, 147, 148, 490, 10**6])
def test_chunks_do_not_change_results(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of less than a cell, one cell, some of a row, whole rows, everything."""
    image = make_image(28, 35, kind="noise")
    expected = torch.from_numpy(cell_edges(image.numpy(), 7))
    monkeypatch.setattr(_edges, "CHUNK_PIXELS", pixels)
    sizes = []
    scores = _edges._scores

    def watched(gray: Tensor, *rest: int) -> Tensor:
        sizes.append(gray.numel())
        return scores(gray, *rest)

    monkeypatch.setattr(_edges, "_scores", watched)
    assert_matches(patch_edges(image, 7), expected)
    assert max(sizes) <= max(pixels, 49)
    assert sum(sizes) == 28 * 35
    assert len(sizes) > 1 or pixels >= 28 * 35


def test_sums_beyond_32_bits() -> None:
    """A patch whose squares sum to more than 2**32, exactly."""
    side = 300
    image = (torch.arange(side * side).view(side, side) % 2 * 255).byte()
    image[::2] = 255 - image[::2]
    image[0, 0] = 7
    assert 2 * side * (side - 1) * 255**2 > 2**32
    assert_edges(image, side)


def test_threads_do_not_change_results(threads) -> None:
    image = make_image(112, 168, kind="noise")
    first, *others = threads(lambda: patch_edges(image, 28))
    for other in others:
        assert_matches(other, first)


def test_compiled() -> None:
    image = make_image(56, 84)
    for backend in BACKENDS:

        def doubled(x: Tensor, backend: str = backend) -> Tensor:
            return patch_edges(x, 28, backend=backend) * 2

        assert_matches(check_compiled(doubled, image), doubled(image))


def test_opcheck() -> None:
    check_opcheck("patch_edges_torch", [make_image(28, 56), make_image(14, 14)[0]], 14)


@pytest.mark.parametrize(
    ("image", "patch", "error", "message"),
    [
        (torch.zeros(28, 28), 28, TypeError, "image: expected dtype torch.uint8"),
        (np.zeros((28, 28), np.uint8), 28, TypeError, "image: expected a uint8 tensor"),
        ([], 28, ValueError, "image: expected at least one image"),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), 28, ValueError, "image: expected shape"),
        (torch.zeros(28, 29, dtype=torch.uint8), 28, ValueError, "multiples of patch_size=28"),
        (torch.zeros(28, 28, dtype=torch.uint8), 0, ValueError, "patch_size: expected at least 1"),
        (torch.zeros(28, 28, dtype=torch.uint8), 2.0, TypeError, "patch_size: expected an int"),
    ],
)
def test_refusals(image: object, patch: object, error: type[Exception], message: str) -> None:
    for backend in BACKENDS:
        with pytest.raises(error, match=message):
            patch_edges(image, patch, backend=backend)


def test_one_backend_on_every_device() -> None:
    for operator in ("patch_edges", "patch_edges_from_pixels"):
        for device in ("cpu", "cuda"):
            assert choose_backend(operator, torch.device(device)) == "torch"
            assert choose_backend(operator, torch.device(device), "reference") == "reference"
            for name in ("native", "triton", "numpy"):
                message = f"backend: expected reference, torch or None.*{operator} has.*'{name}'"
                with pytest.raises(ValueError, match=message):
                    choose_backend(operator, torch.device(device), name)
    with pytest.raises(ValueError, match="'torch'"):
        choose_backend("patch_entropy", torch.device("cpu"), "torch")
