"""Stage 2, the choice: candidates of a layer are scored, and the best of each row stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from erase.hf.gather import chosen_flags, flat_index, int32, offsets_of, owners_of
from erase.hf.slots import Move, join_valid
from erase.methods import LayerSignals
from erase.transfer import moved, upload
from erase_kernels import segmented_topk

if TYPE_CHECKING:
    from erase.hf.prefill import Prefill


@dataclass
class RowScores:
    """Candidates of one row (prompt positions, i64) and their scores, for the report."""

    layer: int
    candidates: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Observed:
    """What a layer attended with."""

    module: nn.Module  # its self-attention
    query: Tensor  # [B, H, S, d]
    key: Tensor  # [B, Hk, L, d], the first past + S of L slots are in use
    scale: float  # of the logits


@dataclass
class Scored:
    """The gather that follows a scored layer, and what the report says of it."""

    layer: int
    move: Move
    dropped: int  # candidates of all rows
    rows: dict[int, RowScores]


@torch.no_grad()
def score_rows(prefill: Prefill, layer: int, seen: Observed, skip: int) -> Scored:
    """Score the candidates of the rows that are pruned after ``layer``, and choose.

    Args:
        prefill: its slots are the sequence that the layer saw.
        layer: 0-based decoder layer.
        seen: queries and keys to score with.
        skip: text tokens of each row that do not score.
    """
    plan, slots, device = prefill.plan, prefill.slots, prefill.device
    rows = plan.rows_pruned_after(layer)
    here = [b in rows for b in range(slots.batch)]
    in_event = upload(here, torch.bool, device)[:, None]
    candidates = slots.visual & in_event
    column_counts = [n if b else 0 for n, b in zip(plan.entered, here, strict=True)]
    columns = flat_index(candidates, sum(column_counts))
    offsets = offsets_of(column_counts, device)
    text = slots.text & in_event & (slots.text.cumsum(1) > skip)
    text_counts = [
        max(0, n - skip) if b else 0 for n, b in zip(plan.counts.text, here, strict=True)
    ]
    there = seen.query.device  # of the layer, where it is not that of the embeddings
    key_mask = join_valid(prefill.past_valid, prefill.past, slots, device)
    scores = prefill.method.score(
        LayerSignals(
            query=seen.query,
            key=seen.key.narrow(2, 0, prefill.past + slots.width),
            rows=moved(flat_index(text, sum(text_counts)), there),
            row_offsets=offsets_of(text_counts, there),
            columns=moved(columns + prefill.past, there),
            column_offsets=moved(offsets, there),
            key_mask=None if key_mask is None else moved(key_mask, there),
            scale=seen.scale,
        )
    )
    prefill.session.devices.add(there)
    scores = moved(scores, device)
    finals = [plan.row_plans[b].final if here[b] else 0 for b in range(slots.batch)]
    lost = [n - final for n, final in zip(column_counts, finals, strict=True)]
    dropped = sum(lost)
    keep = slots.keep_all()
    counts = list(slots.counts)
    if dropped:
        chosen = _best(scores, offsets, finals)
        keep = slots.keep_valid((slots.visual & ~candidates).masked_scatter(candidates, chosen))
        counts = [n - gone for n, gone in zip(counts, lost, strict=True)]
    move = slots.compact(keep, counts, identity=not dropped)
    report = _for_report(prefill, layer, columns, column_counts, scores)
    return Scored(layer, move, dropped, report)


def _best(scores: Tensor, offsets: Tensor, finals: list[int]) -> Tensor:
    """bool [C]: the ``finals[b]`` highest scores of each row, ties to the lowest index."""
    best = segmented_topk(scores, offsets, int32(finals, scores.device), sum(finals))
    return chosen_flags(best.indices, offsets, finals, len(scores))


def _for_report(
    prefill: Prefill, layer: int, columns: Tensor, counts: list[int], scores: Tensor
) -> dict[int, RowScores]:
    owners = owners_of(counts, scores.device)
    positions = prefill.slots.where(columns, owners) + prefill.logical_past
    parts = zip(positions.split(counts), scores.split(counts), strict=True)
    rows = prefill.plan.rows_pruned_after(layer)
    return {
        b: RowScores(layer, where, values) for b, (where, values) in enumerate(parts) if b in rows
    }
