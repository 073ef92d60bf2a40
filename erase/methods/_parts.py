"""Pieces that several methods share: JSON, argument checks, plans and host-built tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from erase.methods._protocol import Draft, ImageSignals
from erase.transfer import upload
from erase_kernels import SegmentedTopK, complexity_plan, segmented_topk

Self = TypeVar("Self", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of a frozen dataclass whose fields are a whole configuration."""

    def to_json(self) -> str:
        """All fields as a JSON object; ``from_json`` reads it back to an equal value."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls: type[Self], text: str) -> Self:
        """Inverse of ``to_json``; ValueError for unknown or missing fields."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"text: expected a JSON object, got {type(fields).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if unknown := fields.keys() - known:
            raise ValueError(f"text: unknown fields {sorted(unknown)}; known: {sorted(known)}")
        if missing := required - fields.keys():
            raise ValueError(f"text: missing fields {sorted(missing)}")
        return cls(**fields)

    def replace(self: Self, **fields: Any) -> Self:
        """A validated copy with some fields changed; TypeError for an unknown field."""
        return dataclasses.replace(self, **fields)


def check_ratio(name: str, value: object) -> None:
    """TypeError/ValueError unless ``value`` is a real number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number in (0, 1], got {type(value).__name__}")
    if not 0 < float(value) <= 1:  # also false for NaN
        raise ValueError(f"{name}: expected a number in (0, 1], got {value}")


def check_int(name: str, value: object, least: int = 0) -> None:
    """TypeError/ValueError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected an int of at least {least}, got {value}")


def check_flag(name: str, value: object) -> None:
    """TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def check_share(name: str, value: object) -> None:
    """TypeError/ValueError unless ``value`` is a real number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number in [0, 1), got {type(value).__name__}")
    if not 0 <= float(value) < 1:  # also false for NaN
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        *first, last = (repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {value!r}")


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


def plan_levels(
    images: ImageSignals, thresholds: Sequence[float], table: Sequence[Sequence[int]]
) -> Draft:
    """Medians, levels, and of ``table`` (an image's counts, level after level) the counts."""
    device = images.entropy.device
    levels = len(thresholds) + 1
    plan = complexity_plan(
        images.entropy,
        images.offsets,
        upload(thresholds, torch.float32, device),
        upload(table, torch.int32, device).reshape(-1, levels),
    )
    return Draft(plan.median, plan.level, plan.count)


def plan_evenly(images: ImageSignals, ratio: float) -> Draft:
    """Every image keeps ``int(n · ratio)`` of its n cells; medians for the report, one level: 0."""
    return plan_levels(images, (), count_table(images.sizes, (ratio,), None))


def best_cells(images: ImageSignals, score: Tensor, counts: Sequence[int]) -> SegmentedTopK:
    """The ``counts[i]`` cells of highest score of each image, ascending, ties to the lowest index.

    ``score``: f32 [n], aligned with the cells.
    """
    wanted = upload(counts, torch.int32, score.device)
    return segmented_topk(score, images.offsets, wanted, sum(counts))


def count_table(
    sizes: Sequence[int], ratios: Sequence[float], minimum_ratio: float | None
) -> list[list[int]]:
    """Stage-1 counts per image and level: ``int(n · max(ratio, minimum_ratio))``.

    Built with Python's double precision and truncation, since a kernel's fp32 product may fall on
    the other side of an integer.
    """
    floor = 0.0 if minimum_ratio is None else float(minimum_ratio)
    return [[int(n * max(float(r), floor)) for r in ratios] for n in sizes]
