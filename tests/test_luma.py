"""Gray levels, histograms and the entropy table: exact, for every instruction set by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from erase_kernels import _numerics, reference
from erase_kernels.testing import make_image
from tests import entropy_oracle

CLONES = ["baseline", "avx2", "avx512"]

ALL_TRIPLES = 2**24


def all_triples() -> np.ndarray:
    """Every RGB colour once, as a ``[3, 4096, 4096]`` image."""
    code = np.arange(ALL_TRIPLES, dtype=np.uint32)
    planes = [(code >> shift).astype(np.uint8) for shift in (16, 8, 0)]
    return np.stack(planes).reshape(3, 4096, 4096)


def test_reference_luma_of_every_color() -> None:
    image = all_triples()
    expected = entropy_oracle.luma(*image)
    assert np.array_equal(reference.luma(torch.from_numpy(image), 0).numpy(), expected)


def test_published_floors() -> None:
    """The pure grays whose weighted sum falls just below the integer."""
    gray = torch.arange(256, dtype=torch.uint8).expand(3, 256)
    lowered = (reference.luma(gray, 0) != gray[0]).nonzero().view(-1)
    assert lowered.tolist() == [37, 61, 74, 93, 111, 122, 148, 186, 215, 222, 233, 244, 253]


def fragile_colors() -> np.ndarray:
    """uint8 [3, n]: of every seventh colour, those that another order of sums or an FMA changes."""
    found = []
    for part in np.array_split(all_triples().reshape(3, -1)[:, ::7], 8, axis=1):
        expected = entropy_oracle.luma(*part)
        weights = np.float32([0.299, 0.587, 0.114])
        red, green, blue = (w * c.astype(np.float32) for w, c in zip(weights, part, strict=True))
        wide = np.float64(weights)[:, None] * part  # exact products
        others = [
            red + (green + blue),
            (red + blue) + green,
            (np.float32(red + wide[1])) + blue,  # fused: the second product is not rounded
            np.float32((red + green) + wide[2]),
            wide.sum(0),
        ]
        fragile = np.any([np.floor(other) != expected for other in others], axis=0)
        found.append(part[:, fragile])
    return np.concatenate(found, axis=1)


# Runs in a process of its own, with one instruction set. Under each colour stands a colour whose
# gray level is known to be the expected one. Two such pairs make a cell of 2 x 2 pixels: its
# entropy is 0 or ln 2, as the expected levels are equal or not, and another number after a mistake.
LUMA_SCRIPT = """
import math, sys, numpy as np, torch, erase_kernels as ek
from erase_kernels.testing import make_pixel_values
from tests.entropy_oracle import luma
from tests.test_luma import all_triples, fragile_colors
assert ek.backend_info().cpu_clone == sys.argv[1]
torch.set_num_threads(1)
image = all_triples().reshape(3, -1)
expected = luma(*image)
first = {level: np.flatnonzero(expected == level)[:1] for level in range(256)}
known = np.concatenate([image[:, first[level]] for level in range(256)], axis=1)
def cells(colors, levels):
    pairs = torch.from_numpy(np.stack([colors, known[:, levels]], axis=1))
    entropy = np.where(levels[::2] == levels[1::2], 0, math.log(2)).astype(np.float32)
    return pairs, torch.from_numpy(entropy)
for start in range(0, image.shape[1], 1 << 20):
    part = slice(start, start + (1 << 20))
    planar, entropy = cells(image[:, part], expected[part])
    for tensor in (planar, planar.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        got = ek.patch_entropy(tensor, 2, backend="native")
        assert torch.equal(got, entropy), (start, tensor.stride(), (got != entropy).sum())
fragile = np.repeat(fragile_colors(), 2, axis=1)  # an even number; each beside itself
assert 300 < fragile.shape[1] < 10000, fragile.shape
planar, entropy = cells(fragile, luma(*fragile))
layout = ek.PixelLayout.tiles(2, 2, planar.shape[2], (0.5,) * 3, (0.5,) * 3)
for dtype in (torch.float32, torch.float16):
    values = make_pixel_values(planar, layout).to(dtype)
    got = ek.patch_entropy_from_pixels(values, layout, backend="native")
    assert torch.equal(got, entropy), (dtype, (got != entropy).sum())
print("exact")
"""


@pytest.mark.parametrize("clone", CLONES)
def test_native_luma_of_every_color(clone: str, supported_clones: set[str]) -> None:
    if clone not in supported_clones:
        pytest.skip(f"this processor has no {clone}")
    done = run_with_clone(clone, LUMA_SCRIPT)
    assert done.stdout == "exact\n", done.stderr


# The remaining native paths of each instruction set.
PATHS_SCRIPT = """
import sys, torch, erase_kernels as ek
from erase_kernels.testing import assert_matches, make_image
from tests.test_patch_entropy import strided_views
assert ek.backend_info().cpu_clone == sys.argv[1]
for patch in (1, 3, 10, 28, 33, 200):
    for kind in ("scene", "noise", "flat"):
        image = make_image(patch, 3 * patch, kind=kind, seed=patch)
        expected = ek.patch_entropy(image, patch, backend="reference")
        for view in (image, *strided_views(image).values()):
            assert_matches(ek.patch_entropy(view, patch, backend="native"), expected)
print("same")
"""


@pytest.mark.parametrize("clone", CLONES)
def test_every_instruction_set(clone: str, supported_clones: set[str]) -> None:
    if clone not in supported_clones:
        pytest.skip(f"this processor has no {clone}")
    done = run_with_clone(clone, PATHS_SCRIPT)
    assert done.stdout == "same\n", done.stderr


def run_with_clone(clone: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, clone],
        env={**os.environ, "ERASE_KERNELS_CPU_CLONE": clone},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("cell_pixels", [1, 2, 3, 196, 784, 1024])
def test_table(cell_pixels: int) -> None:
    table = _numerics.entropy_table(cell_pixels)
    count = np.arange(cell_pixels + 1, dtype=np.longdouble)
    exact = count * np.log(np.maximum(count, 1)) / cell_pixels * 2**40
    assert table.dtype == torch.int64
    assert table.shape == (cell_pixels + 1,)
    assert np.abs(table.numpy() - exact).max() <= 0.51  # half a unit, and longdouble's own error
    assert table[0] == 0


def test_histograms_are_exact() -> None:
    image = make_image(84, 112, kind="scene")
    gray = torch.from_numpy(np.stack(entropy_oracle.cells_of(image.numpy(), 28)))
    expected = np.stack([np.bincount(c, minlength=256) for c in gray.numpy()])
    assert np.array_equal(reference.histograms(gray).numpy(), expected)
    # Natively, a table that singles out one count makes the entropy a readout of the histogram.
    for count in (1, 2, 3, 5, 28, 300):
        table = torch.zeros(785, dtype=torch.int64)
        table[count] = -(2**40)
        native = torch.ops.erase_kernels.patch_entropy_native([image], 28, table)
        assert native.tolist() == (expected == count).sum(1).tolist()
