"""The instructions of the entropy kernels that triton's interpreter cannot run, by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from erase_kernels.pixel_layout import CLIP_MEAN, CLIP_STD
from erase_kernels.triton_kernels import _histogram_asm
from tests.device.ptx import LANES, Warp


def warp_counts(sums: list[np.ndarray]) -> np.ndarray:
    """Accumulators of all lanes -> int64 ``[256]``."""
    counts = np.zeros((16, 16), np.int64)
    lane = np.arange(LANES)
    for i, value in enumerate(sums):
        row, column = lane // 4 + i % 4 // 2 * 8, lane % 4 * 2 + i % 2 + i // 4 * 8
        counts[row, column] = value.view(np.int32)
    return counts.reshape(-1)


@pytest.mark.parametrize("method", ["BYTE", "BIT"])
@pytest.mark.parametrize("used", [1, 7, 8])
@pytest.mark.parametrize("levels", [1, 3, 256])
def test_counting_instructions(levels: int, used: int, method: str) -> None:
    rng = np.random.default_rng(levels)
    gray = rng.permutation(256)[rng.integers(0, levels, (8, LANES, 4))].astype(np.uint8)
    gray[used:] = 0
    words = list(gray.view(np.uint32)[..., 0])
    empty = [np.zeros(LANES, np.uint32)] * 8
    tables = Warp(getattr(_histogram_asm, f"{method}_TABLES"), 4, empty[:4]).outputs
    step = getattr(_histogram_asm, f"{method}_COUNT")
    sums = empty
    for block in [words] if method == "BIT" else [[word] for word in words[:used]]:
        sums = Warp(step, 8, [*block, *tables, *sums]).outputs
    blanks = [np.full(LANES, 3, np.uint32)] * 4
    counts = Warp(getattr(_histogram_asm, f"{method}_SOLVE"), 8, [*blanks, *sums]).outputs
    expected = np.bincount(gray[: 8 if method == "BIT" else used].reshape(-1), minlength=256)
    expected[0] -= 3
    assert np.array_equal(warp_counts(counts), expected)


def test_level_instructions() -> None:
    y = np.random.default_rng(0).uniform(0, 255.9999, (4, LANES)).astype(np.float32)
    y[:, :4] = [0, 254.99998, 255, 255.99998]
    (word,) = Warp(_histogram_asm.LEVELS, 1, list(y)).outputs
    assert np.array_equal(word.view(np.uint8).reshape(LANES, 4).T, np.floor(y))


def test_float_instructions() -> None:
    pixels = np.arange(LANES * 12, dtype=np.uint16).astype(np.uint8).reshape(LANES, 4, 3)
    words = pixels.reshape(LANES, 12).view(np.uint32)
    planes = Warp(_histogram_asm.FLOATS_OF_TRIPLES, 12, [words[:, i].copy() for i in range(3)])
    assert np.array_equal(np.stack(planes.outputs, 1).reshape(LANES, 3, 4), pixels.mT)
    (word, *_) = words.T.copy()
    assert np.array_equal(
        np.stack(Warp(_histogram_asm.FLOATS, 4, [word]).outputs, 1),
        word.view(np.uint8).reshape(LANES, 4),
    )


def test_recovery_instructions() -> None:
    """What runs in place of the interpreter's formula."""
    values = np.random.default_rng(0).normal(scale=2, size=LANES).astype(np.float32)
    values[:6] = [math.nan, math.inf, -math.inf, 0, 1e30, -1e30]
    mean, std, scale = np.float32(CLIP_MEAN[0]), np.float32(CLIP_STD[0]), np.float32(255)
    operands = [values, *(np.full(LANES, x) for x in (std, mean, scale))]
    level, distance = Warp(_histogram_asm.RECOVER, 2, operands).outputs
    exact = (values * std + mean) * scale
    expected = np.clip(np.floor(exact + np.float32(0.5)), 0, 255)
    expected[0] = 0  # of NaN any level will do
    assert np.array_equal(level, expected)
    assert np.array_equal(distance, np.abs(exact - expected), equal_nan=True)
