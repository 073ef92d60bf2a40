"""Entropies by numpy, sharing nothing with the package but the definition."""

from __future__ import annotations

import numpy as np

RED, GREEN, BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)


def luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """uint8 planes -> uint8; every operation is one rounded float32 operation."""
    weighted = [w * c.astype(np.float32) for w, c in ((RED, red), (GREEN, green), (BLUE, blue))]
    return np.floor((weighted[0] + weighted[1]) + weighted[2]).astype(np.uint8)


def gray_of(image: np.ndarray) -> np.ndarray:
    """``[3, H, W]``, ``[1, H, W]`` or ``[H, W]`` -> ``[H, W]``."""
    if image.ndim == 2:
        return image
    return image[0] if image.shape[0] == 1 else luma(image[0], image[1], image[2])


def cells_of(image: np.ndarray, patch: int) -> list[np.ndarray]:
    """Gray levels of each patch, row-major."""
    gray = gray_of(image)
    height, width = gray.shape
    return [
        gray[top : top + patch, left : left + patch].reshape(-1)
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]


def entropy_of(levels: np.ndarray) -> float:
    """Shannon entropy in nats, in float64."""
    counts = np.bincount(levels, minlength=256)
    p = counts[counts > 0] / levels.size
    return float(abs(-(p * np.log(p)).sum()))


def patch_entropy(image: np.ndarray, patch: int) -> np.ndarray:
    """float64 ``[n]``."""
    return np.array([entropy_of(cell) for cell in cells_of(image, patch)])
