"""Fills the report of a prefill from its final state, without reading anything on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erase.hf import cache as kv
from erase.hf.gather import flat_index, owners_of
from erase.report import BytesReport, ImageReport, PrefillReport, RowReport
from erase_kernels import choose_backend

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill

PLANNING_OPERATORS = ("patch_entropy_from_pixels", "complexity_plan", "segmented_topk")


def build_report(prefill: Prefill, cache: Any) -> PrefillReport:
    """The report of a prefill whose cache (or None) is in its final state."""
    rows = _rows(prefill)
    edges = ("patch_edges_from_pixels",) if "pixel_edges" in prefill.method.needs else ()
    operators = (*PLANNING_OPERATORS, *edges, *sorted(prefill.operators))
    report = PrefillReport(
        rows=rows,
        backends={op: choose_backend(op, prefill.device) for op in operators},
        approximate_pixels=prefill.approximate,
        num_layers=prefill.session.architecture.facts.num_layers,
    )
    if cache is not None:
        _fill_cache(report, prefill, cache)
    return report


def _rows(prefill: Prefill) -> list[RowReport]:
    plan, slots = prefill.plan, prefill.slots
    entropies = plan.signals.entropy.split(list(plan.signals.sizes))
    scores: Sequence[Tensor | None] = [None] * len(plan.images)
    if plan.stage1_scores is not None:
        scores = plan.stage1_scores.split(list(plan.signals.sizes))
    kept = plan.selected.indices.split([image.count for image in plan.images])
    finals = [
        row.final if row.layer is not None else entered
        for row, entered in zip(plan.row_plans, plan.entered, strict=True)
    ]
    owners = owners_of(finals, prefill.device)
    final_positions = slots.where(flat_index(slots.visual, sum(finals)), owners)
    final_rows = (final_positions + prefill.logical_past).split(finals)
    rows = []
    for b in range(slots.batch):
        mine = [i for i, image in enumerate(plan.images) if image.row == b]
        scored = prefill.row_scores.get(b)
        rows.append(
            RowReport(
                images=[
                    ImageReport(
                        entropy=entropies[i],
                        median=plan.images[i].median,
                        level=plan.images[i].level,
                        kept=kept[i].to(torch.int64),
                        modality=plan.images[i].modality,
                        stage1_scores=scores[i],
                    )
                    for i in mine
                ],
                visual_tokens=plan.counts.visual[b],
                layer=scored.layer if scored else None,
                candidates=scored.candidates if scored else None,
                scores=scored.scores if scored else None,
                kept=final_rows[b],
                prefill_ratio=_prefill_ratio(prefill, b, finals[b]),
            )
        )
    return rows


def _prefill_ratio(prefill: Prefill, row: int, final: int) -> float | None:
    """Mean share of a row's visual tokens over decoder layers; None where it has none."""
    plan, layers = prefill.plan, prefill.session.architecture.facts.num_layers
    visual, entered, layer = plan.counts.visual[row], plan.entered[row], plan.row_plans[row].layer
    if not visual:
        return None
    before = layers if layer is None else layer + 1
    return (before * entered + (layers - before) * final) / (layers * visual)


def _fill_cache(report: PrefillReport, prefill: Prefill, cache: Any) -> None:
    """Lengths and bytes, measured on the cache's own tensors."""
    slots, expected = prefill.slots, prefill.past + prefill.slots.width
    lengths = kv.layer_lengths(cache, expected)
    per_row = [
        [0 if held is None else held - expected + past + count for held in lengths]
        for past, count in zip(prefill.plan.counts.past, slots.counts, strict=True)
    ]
    report.kv_lengths = per_row[0] if slots.batch == 1 else per_row
    held = kv.kv_bytes(cache)
    room = kv.capacity(cache)
    unpruned_slots = max(prefill.logical_past + prefill.length, room or 0)
    unpruned = held // (room or kv.physical_length(cache)) * unpruned_slots
    report.kv_bytes = BytesReport(unpruned, held)
    report.kv_storage_bytes = BytesReport(unpruned, kv.kv_storage_bytes(cache))
    if room is not None:  # decoding changes nothing, and where it is compiled it reports nothing
        note_first_decode(report, cache)


def note_first_decode(report: PrefillReport | None, cache: Any) -> None:
    """Bytes right after the first decode step on a pruned cache."""
    if report is None or report.kv_bytes.after_first_decode is not None:
        return
    report.kv_bytes.after_first_decode = kv.kv_bytes(cache)
    report.kv_storage_bytes.after_first_decode = kv.kv_storage_bytes(cache)
