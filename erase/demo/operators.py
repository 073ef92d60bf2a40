"""Times each operator alone, on tensors of the shapes that the demo's prefill gave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erase.demo.timing import median_seconds
from erase.methods import EraseConfig
from erase.report import PrefillReport
from erase_kernels import (
    PixelLayout,
    check_status,
    choose_backend,
    compact_kv_,
    compact_rows,
    complexity_plan,
    patch_entropy,
    patch_entropy_from_pixels,
    segmented_topk,
    text_to_vision_scores,
)

OPERATORS = (
    "patch_entropy",
    "patch_entropy_from_pixels",
    "complexity_plan",
    "segmented_topk",
    "text_to_vision_scores",
    "compact_kv_",
    "compact_rows",
)
REPEATS = 15


@dataclass(frozen=True)
class OperatorTime:
    """Median seconds of one operator. ``what``: the shapes it worked on."""

    operator: str
    backend: str
    what: str
    seconds: float


@dataclass(frozen=True)
class PrefillShapes:
    """What the operators of one prefill (batch of one, one image) worked on.

    Attributes:
        image: u8 [3, H, W], the resized image; ``cell``: side of a cell in it.
        pixel_values: what the processor made of it; ``layout``: how to read them.
        length, first: tokens of the unpruned prompt, and the position of its first visual token.
        text_config: the decoder's configuration.
    """

    image: Tensor
    cell: int
    pixel_values: Tensor
    layout: PixelLayout
    length: int
    first: int
    text_config: Any


class _Bench:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[OperatorTime] = []

    def time(self, operator: str, what: str, call: Callable[[], object]) -> None:
        backend = choose_backend(operator, self.device)
        seconds = median_seconds(call, REPEATS, self.device)
        self.times.append(OperatorTime(operator, backend, what, seconds))


def time_operators(
    shapes: PrefillShapes, method: EraseConfig, report: PrefillReport
) -> list[OperatorTime]:
    """Median time of every operator the prefill used, and of ``patch_entropy`` on the raw image.

    Stage-2 operators are left out where stage 2 did not run. Queries, keys and states are random:
    their time does not depend on their values.
    """
    bench = _Bench(shapes.pixel_values.device)
    _time_stage1(bench, shapes, method, report)
    if report.rows[0].layer is not None:
        _time_stage2(bench, shapes, report)
    check_status(bench.device)  # a device skips what it refuses, which would look fast
    return bench.times


def _time_stage1(
    bench: _Bench, shapes: PrefillShapes, method: EraseConfig, report: PrefillReport
) -> None:
    device, seen = bench.device, report.rows[0].images[0]
    image, entropy, size = shapes.image.to(device), seen.entropy.to(device), len(seen.entropy)
    bench.time(
        "patch_entropy",
        f"u8 {list(image.shape)} -> {size} cells",
        lambda: patch_entropy(image, shapes.cell),
    )
    bench.time(
        "patch_entropy_from_pixels",
        f"f32 {list(shapes.pixel_values.shape)} -> {size} cells",
        lambda: patch_entropy_from_pixels(shapes.pixel_values, shapes.layout),
    )
    offsets = _int32([0, size], device)
    thresholds = torch.tensor(method.entropy_thresholds, dtype=torch.float32, device=device)
    table = _int32([[len(seen.kept)] * (len(thresholds) + 1)], device)
    bench.time(
        "complexity_plan",
        f"{size} entropies, {len(thresholds)} thresholds",
        lambda: complexity_plan(entropy, offsets, thresholds, table),
    )
    _time_topk(bench, "stage 1", entropy, len(seen.kept))


def _time_topk(bench: _Bench, stage: str, score: Tensor, count: int) -> None:
    offsets = _int32([0, len(score)], bench.device)
    counts = _int32([count], bench.device)
    bench.time(
        "segmented_topk",
        f"{stage}: {count} of {len(score)}",
        lambda: segmented_topk(score, offsets, counts, count),
    )


def _time_stage2(bench: _Bench, shapes: PrefillShapes, report: PrefillReport) -> None:
    row, device, config = report.rows[0], bench.device, shapes.text_config
    candidates, scores, layer = row.candidates, row.scores, row.layer
    if candidates is None or scores is None or layer is None:
        raise ValueError("report: expected a prefill in which stage 2 ran")
    text = shapes.length - row.visual_tokens
    width, end = text + len(candidates), shapes.first + len(candidates)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    query = torch.randn(1, heads, width, dim, device=device)
    key = torch.randn(1, kv_heads, width, dim, device=device)
    rows = _int32([*range(shapes.first), *range(end, width)], device)
    columns = _int32(range(shapes.first, end), device)
    row_offsets, column_offsets = _int32([0, len(rows)], device), _int32([0, len(columns)], device)
    bench.time(
        "text_to_vision_scores",
        f"{heads} heads x {len(rows)} rows x {width} keys, d {dim}",
        lambda: text_to_vision_scores(query, key, rows, row_offsets, columns, column_offsets),
    )
    _time_topk(bench, "stage 2", scores.to(device), len(row.kept))
    chosen = torch.searchsorted(candidates, row.kept) + shapes.first
    keep = torch.cat([rows, chosen.to(rows)]).sort().values[None]
    counts = _int32([keep.shape[1]], device)
    _time_compaction(bench, key, layer + 1, keep, counts)
    hidden = torch.randn(1, width, config.hidden_size, device=device)
    rotary = torch.randn(1, width, dim, device=device)
    bench.time(
        "compact_rows",
        f"hidden and rotary tables, {width} -> {keep.shape[1]} rows",
        lambda: compact_rows([hidden, rotary, rotary], keep, counts),
    )


def _time_compaction(bench: _Bench, key: Tensor, layers: int, keep: Tensor, counts: Tensor) -> None:
    cache = [key.clone() for _ in range(2 * layers)]
    bench.time(
        "compact_kv_",
        f"keys and values of {layers} layers, {key.shape[2]} -> {keep.shape[1]} rows",
        lambda: compact_kv_(cache, keep, counts),
    )


def _int32(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)
