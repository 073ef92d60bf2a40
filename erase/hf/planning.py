"""From entropies to a plan: which image belongs to which row, what is kept, and at which layer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from erase.hf.families import Encoded
from erase.hf.faults import check_faults
from erase.hf.gather import chosen_flags
from erase.hf.ownership import (
    Owners,
    Stream,
    assign_rows,
    check_needs,
    signals_of,
    without_masked,
)
from erase.hf.signals import Modality
from erase.methods import Draft, ImagePlan, ImageSignals, Method, ModelFacts, RowPlan
from erase.transfer import download, moved, upload
from erase_kernels import SegmentedTopK, raise_for_status, status_word


@dataclass(frozen=True)
class RowCounts:
    """Numbers of tokens in each batch row."""

    valid: tuple[int, ...]  # not padding
    unpruned: tuple[int, ...]  # placeholders of a modality that is not pruned
    visual: tuple[int, ...]  # candidates
    text: tuple[int, ...]  # valid tokens that are neither image nor video nor drafted
    past: tuple[int, ...]  # valid cache slots before this prefill
    masked: tuple[int, ...]  # placeholders that are padding


@dataclass(frozen=True)
class PlannedImages:
    """Host values of one prefill, and the stage-1 choice on the device."""

    images: tuple[ImagePlan, ...]
    signals: ImageSignals
    row_plans: tuple[RowPlan, ...]
    counts: RowCounts
    candidates: tuple[Tensor, ...]  # bool [B, S] of each stream
    selected: SegmentedTopK
    stage1_scores: Tensor | None  # f32, aligned with the entropies; None: the entropies themselves

    @property
    def drops(self) -> bool:
        """Whether stage 1 drops anything."""
        return any(image.count < image.size for image in self.images)

    @property
    def drops_later(self) -> bool:
        """Whether stage 2 drops anything."""
        rows = zip(self.row_plans, self.entered, strict=True)
        return any(row.layer is not None and row.final < entered for row, entered in rows)

    @property
    def entered(self) -> list[int]:
        """Candidates of each row that enter the language model."""
        return [
            sum(image.count for image in self.images if image.row == row)
            for row in range(len(self.row_plans))
        ]

    def entering_counts(self) -> list[int]:
        """Tokens of each row that enter the language model."""
        rows = zip(self.counts.valid, self.counts.visual, self.entered, strict=True)
        return [valid - visual + entered for valid, visual, entered in rows]

    @property
    def visual(self) -> Tensor:
        """bool [B, S]: the tokens that may be pruned."""
        return _union(self.candidates)

    def kept_visual(self) -> Tensor:
        """bool [B, S]: the candidates that stage 1 keeps."""
        counts = [image.count for image in self.images]
        flags = chosen_flags(
            self.selected.indices, self.signals.offsets, counts, len(self.signals.entropy)
        )
        sizes = [image.size for image in self.images]
        modalities = dict.fromkeys(image.modality for image in self.images)
        parts = flags.split(
            [
                sum(n for n, image in zip(sizes, self.images, strict=True) if image.modality == m)
                for m in modalities
            ]
        )
        kept = [
            torch.zeros_like(mask).masked_scatter(mask, part)
            for mask, part in zip(self.candidates, parts, strict=True)
        ]
        return _union(kept)

    def rows_pruned_after(self, layer: int) -> list[int]:
        """Batch rows whose second stage follows this layer."""
        return [b for b, row in enumerate(self.row_plans) if row.layer == layer]


def _union(masks: Sequence[Tensor]) -> Tensor:
    union = masks[0]
    for mask in masks[1:]:
        union = union | mask
    return union


@dataclass(frozen=True)
class Surroundings:
    """The tokens of a prefill that are not planned, and the slots before it."""

    text: Tensor  # bool [B, S], what may score
    unpruned: Tensor  # bool [B, S], placeholders of a modality that is not pruned
    valid: Tensor | None  # bool [B, S]
    past_valid: Tensor | None  # bool [B, past]
    past: int
    devices: tuple[torch.device, ...] = ()  # more whose kernels may have found something wrong
    faults: tuple[Tensor | None, ...] = ()  # bool [B] each, what must not be: see FAULTS


def plan_images(method: Method, streams: Sequence[Stream], around: Surroundings) -> PlannedImages:
    """Everything the host must know about a prefill, at the price of one small copy.

    Image tokens that the attention mask hides are padding: they stand for no cell. They are rare,
    so only a prompt that has some pays for finding them, with another copy.

    Raises:
        ValueError: the prompt's image tokens are not those of the images; a device found bad data.
    """
    plan, owners = _plan(method, streams, around)
    if around.valid is not None and any(plan.counts.masked):
        streams = [
            without_masked(stream, own, around.valid)
            for stream, own in zip(streams, owners, strict=True)
        ]
        plan, _ = _plan(method, streams, around)
    _check_lengths(plan)
    return plan


def _plan(
    method: Method, streams: Sequence[Stream], around: Surroundings
) -> tuple[PlannedImages, list[Owners]]:
    encoded = [one for stream in streams for one in stream.encoded]
    device = streams[0].placeholders.device
    everything = signals_of(encoded, device)
    check_needs(method, everything)
    draft = method.draft(everything)
    scores = method.stage1_scores(everything, draft)
    total, batch = len(encoded), len(around.text)
    devices = [device, encoded[0].entropy.device, *around.devices]
    faults = {i: moved(f, device) for i, f in enumerate(around.faults) if f is not None}
    counted = [*_counted(streams, around), *faults.values()]
    drafts, per_row = _numbers(draft, counted, devices)
    found = [per_row.pop() for _ in faults]
    check_faults(dict(zip(reversed(faults), found, strict=True)))
    held = per_row[: len(streams)]
    owners = [
        assign_rows([one.tokens for one in stream.encoded], tokens, stream.modality)
        for stream, tokens in zip(streams, held, strict=True)
    ]
    everyone = _numbered(streams, owners)
    images = tuple(
        ImagePlan(*drafts[i], everything.sizes[i], row, modality) for i, row, modality in everyone
    )
    order = [i for i, _, _ in everyone]
    signals = everything
    if order != list(range(total)):
        signals = signals_of([encoded[i] for i in order], device)
        scores = _repeated(scores, everything.sizes, order)
    text, unpruned, valid, past, masked = per_row[len(streams) :]
    plan = PlannedImages(
        images=images,
        signals=signals,
        row_plans=method.decide(images, batch),
        counts=RowCounts(
            valid=valid,
            unpruned=unpruned,
            visual=tuple(sum(i.size for i in images if i.row == b) for b in range(batch)),
            text=text,
            past=past,
            masked=masked,
        ),
        candidates=tuple(
            _candidates(stream.placeholders, [stream.encoded[i] for i, _ in own])
            for stream, own in zip(streams, owners, strict=True)
        ),
        selected=method.select(signals, [image.count for image in images], scores),
        stage1_scores=scores,
    )
    return plan, owners


def _repeated(scores: Tensor | None, sizes: Sequence[int], order: Sequence[int]) -> Tensor | None:
    """Scores of the images ``order``: rows that repeat a prompt have those of its images."""
    if scores is None:
        return None
    parts = scores.split(list(sizes))
    return torch.cat([parts[i] for i in order])


def _numbers(
    draft: Draft, counted: Sequence[Tensor], devices: Sequence[torch.device]
) -> tuple[list[tuple[float, int, int]], list[tuple[int, ...]]]:
    """On the host: (median, level, count) of each image, and the per-row counts."""
    images, batch = len(draft.level), len(counted[0])
    parts = [draft.median.view(torch.int32), draft.level, draft.count, *counted]
    values = iter(_read([part.to(torch.int32) for part in parts], list(dict.fromkeys(devices))))
    medians = struct.unpack(f"{images}f", struct.pack(f"{images}i", *islice(values, images)))
    levels, counts = list(islice(values, images)), list(islice(values, images))
    per_row = [tuple(islice(values, batch)) for _ in counted]
    return list(zip(medians, levels, counts, strict=True)), per_row


def _counted(streams: Sequence[Stream], around: Surroundings) -> list[Tensor]:
    """Per row: placeholders of each stream, text, unpruned, valid, past, masked placeholders."""
    batch, length = around.text.shape
    device = around.text.device
    held = [stream.placeholders.sum(1) for stream in streams]
    if around.valid is None:
        masked = torch.zeros_like(held[0])
    else:
        masked = (_union([s.placeholders for s in streams]) & ~around.valid).sum(1)
    return [
        *held,
        around.text.sum(1),
        around.unpruned.sum(1),
        _row_counts(around.valid, batch, length, device),
        _row_counts(around.past_valid, batch, around.past, device),
        masked,
    ]


def _numbered(
    streams: Sequence[Stream], owners: Sequence[Owners]
) -> list[tuple[int, int, Modality]]:
    """(number among all encoded, batch row, modality), stream by stream in order of tokens."""
    numbered: list[tuple[int, int, Modality]] = []
    first = 0
    for stream, own in zip(streams, owners, strict=True):
        numbered.extend((first + i, row, stream.modality) for i, row in own)
        first += len(stream.encoded)
    return numbered


def _candidates(placeholders: Tensor, encoded: Sequence[Encoded]) -> Tensor:
    """bool [B, S]: the placeholders that stand for a cell."""
    if all(one.candidates is None for one in encoded):
        return placeholders
    flags: list[bool] = []
    for one in encoded:
        flags += [True] * one.tokens if one.candidates is None else one.candidates.tolist()
    chosen = upload(flags, torch.bool, placeholders.device)
    return torch.zeros_like(placeholders).masked_scatter(placeholders, chosen)


def _read(parts: Sequence[Tensor], devices: Sequence[torch.device]) -> list[int]:
    """Numbers of i32 vectors on the first of ``devices``: the one copy of a prefill to the host.

    It brings along what kernels of ``devices`` found wrong since the last one, which is raised
    here: bad pixels of this prefill, or NaN scores of an earlier one.
    """
    words = [moved(status_word(device), devices[0]) for device in devices]
    values: list[int] = download(torch.cat([*words, *parts]))
    for device, status in zip(devices, values, strict=False):
        raise_for_status(status, device)
    return values[len(words) :]


def _row_counts(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    if mask is None:
        return torch.full((batch,), length, dtype=torch.int32, device=device)
    return mask.sum(1)


def check_layers(plan: PlannedImages, model: ModelFacts) -> None:
    """ValueError where a row's second stage follows a layer without attention, or none at all."""
    for row, chosen in enumerate(plan.row_plans):
        if chosen.layer is not None and chosen.layer not in model.attention_layers:
            raise ValueError(
                f"method: row {row} is to be pruned after layer {chosen.layer}, but the layers "
                f"with attention are {list(model.attention_layers)}"
            )


def _check_lengths(plan: PlannedImages) -> None:
    for row, entering in enumerate(plan.entering_counts()):
        if entering - plan.entered[row] + plan.row_plans[row].final < 1:
            raise ValueError(
                f"input_ids: row {row} is images only, and none of their tokens would be kept; "
                "add text, or raise keep_ratio"
            )
