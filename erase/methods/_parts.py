"""Pieces that several methods share: argument checks and host-built tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real


def check_ratio(name: str, value: object) -> None:
    """TypeError/ValueError unless ``value`` is a real number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number in (0, 1], got {type(value).__name__}")
    if not 0 < float(value) <= 1:  # also false for NaN
        raise ValueError(f"{name}: expected a number in (0, 1], got {value}")


def check_descending(name: str, values: Sequence[float]) -> None:
    """ValueError unless ``values`` are finite and strictly descending."""
    if not all(isinstance(v, Real) and math.isfinite(v) for v in values):
        raise ValueError(f"{name}: expected finite numbers, got {tuple(values)}")
    if any(a <= b for a, b in pairwise(values)):
        raise ValueError(f"{name}: expected strictly descending numbers, got {tuple(values)}")


def check_layer(name: str, value: int, num_layers: int) -> None:
    """ValueError unless ``value`` names one of ``num_layers`` decoder layers (0-based)."""
    if not 0 <= value < num_layers:
        raise ValueError(
            f"{name}: expected a decoder layer of this model, 0 to {num_layers - 1}, got {value}"
        )


def check_attention_layer(name: str, value: int, layers: Sequence[int]) -> None:
    """ValueError unless decoder layer ``value`` is one of ``layers``, those with attention."""
    if value in layers:
        return
    below = [layer for layer in layers if layer < value][-1:]
    above = [layer for layer in layers if layer > value][:1]
    nearest = " and ".join(map(str, below + above))
    raise ValueError(
        f"{name}: layer {value} is a linear-attention layer, which has no attention to score with "
        f"and no keys to evict; the nearest full-attention layers: {nearest}"
    )


def count_table(
    sizes: Sequence[int], ratios: Sequence[float], minimum_ratio: float | None
) -> list[list[int]]:
    """Stage-1 counts per image and level: ``int(n · max(ratio, minimum_ratio))``.

    Built with Python's double precision and truncation, since a kernel's fp32 product may fall on
    the other side of an integer.
    """
    floor = 0.0 if minimum_ratio is None else float(minimum_ratio)
    return [[int(n * max(float(r), floor)) for r in ratios] for n in sizes]
