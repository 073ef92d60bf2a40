"""From entropies to a plan: which image belongs to which row, what is kept, and at which layer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from erase.hf.gather import chosen_flags, offsets_of
from erase.methods import ImagePlan, ImageSignals, Method, RowPlan
from erase.transfer import download, moved
from erase_kernels import SegmentedTopK, raise_for_status, status_word


@dataclass(frozen=True)
class PlannedImages:
    """Host values of one prefill, and the stage-1 choice on the device."""

    images: tuple[ImagePlan, ...]
    signals: ImageSignals
    row_plans: tuple[RowPlan, ...]
    valid_counts: tuple[int, ...]  # tokens of each row that are not padding
    visual_counts: tuple[int, ...]  # image tokens of each row
    text_counts: tuple[int, ...]  # valid tokens that are neither image nor video nor drafted
    past_counts: tuple[int, ...]  # valid cache slots of each row before this prefill
    selected: SegmentedTopK

    @property
    def drops(self) -> bool:
        """Whether stage 1 drops anything."""
        return any(image.count < image.size for image in self.images)

    @property
    def entered(self) -> list[int]:
        """Image tokens of each row that enter the language model."""
        return [
            sum(image.count for image in self.images if image.row == row)
            for row in range(len(self.row_plans))
        ]

    def entering_counts(self) -> list[int]:
        """Tokens of each row that enter the language model."""
        rows = zip(self.valid_counts, self.visual_counts, self.entered, strict=True)
        return [valid - visual + entered for valid, visual, entered in rows]

    def flags(self) -> Tensor:
        """bool [n]: which visual tokens stage 1 keeps, in the order of the batch."""
        counts = [image.count for image in self.images]
        signals = self.signals
        return chosen_flags(self.selected.indices, signals.offsets, counts, len(signals.entropy))

    def rows_pruned_after(self, layer: int) -> list[int]:
        """Batch rows whose second stage follows this layer."""
        return [b for b, row in enumerate(self.row_plans) if row.layer == layer]


def plan_images(
    method: Method,
    entropies: Sequence[Tensor],  # per encoded image, f32 [cells]
    image: Tensor,  # bool [B, S]
    text: Tensor,  # bool [B, S], what may score
    valid: Tensor | None,  # bool [B, S]
    past_valid: Tensor | None,  # bool [B, past]
    past: int,
) -> PlannedImages:
    """Everything the host must know about a prefill, at the price of one small copy.

    Raises:
        ValueError: the prompt's image tokens are not those of the images; a device found bad data.
    """
    batch, length = image.shape
    encoded = _signals(entropies, range(len(entropies)), image.device)
    draft = method.draft(encoded)
    counted = [image.sum(1), text.sum(1)]
    counted.append(_row_counts(valid, batch, length, image.device))
    counted.append(_row_counts(past_valid, batch, past, image.device))
    counted.append(torch.zeros_like(counted[0]) if valid is None else (image & ~valid).sum(1))
    drafted = [draft.median.view(torch.int32), draft.level, draft.count]
    devices = list(dict.fromkeys([image.device, entropies[0].device]))
    values = _read([*drafted, *(c.to(torch.int32) for c in counted)], devices)

    total = len(entropies)
    medians = struct.unpack(f"{total}f", struct.pack(f"{total}i", *values[:total]))
    levels, counts = values[total : 2 * total], values[2 * total : 3 * total]
    per_row = [values[3 * total + i * batch : 3 * total + (i + 1) * batch] for i in range(5)]
    visual_counts, text_counts, valid_counts, past_counts, masked_counts = per_row
    _check_rows(masked_counts)
    owners = _assign_rows(encoded.sizes, visual_counts)
    images = tuple(
        ImagePlan(medians[i], levels[i], counts[i], encoded.sizes[i], row) for i, row in owners
    )
    order = [i for i, _ in owners]
    signals = encoded
    if order != list(range(total)):
        signals = _signals(entropies, order, image.device)
    plan = PlannedImages(
        images=images,
        signals=signals,
        row_plans=method.decide(images, batch),
        valid_counts=tuple(valid_counts),
        visual_counts=tuple(visual_counts),
        text_counts=tuple(text_counts),
        past_counts=tuple(past_counts),
        selected=method.select(signals, [image.count for image in images]),
    )
    _check_lengths(plan)
    return plan


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


def _signals(
    entropies: Sequence[Tensor], order: Sequence[int], device: torch.device
) -> ImageSignals:
    sizes = tuple(len(entropies[i]) for i in order)
    entropy = moved(torch.cat([entropies[i] for i in order]), device)
    return ImageSignals(entropy, sizes, offsets_of(sizes, device))


def _row_counts(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    if mask is None:
        return torch.full((batch,), length, dtype=torch.int32, device=device)
    return mask.sum(1)


def _check_rows(masked_counts: Sequence[int]) -> None:
    for row, count in enumerate(masked_counts):
        if count:
            raise ValueError(
                f"attention_mask: row {row} masks {count} image tokens; mask padding only, and "
                "leave an image out of the prompt instead"
            )


def _check_lengths(plan: PlannedImages) -> None:
    for row, entering in enumerate(plan.entering_counts()):
        if entering - plan.entered[row] + plan.row_plans[row].final < 1:
            raise ValueError(
                f"input_ids: row {row} is images only, and none of their tokens would be kept; "
                "add text, or raise keep_ratio"
            )


def _assign_rows(sizes: Sequence[int], visual: Sequence[int]) -> list[tuple[int, int]]:
    """(encoded image, batch row) for every image in the batch, in the order of its tokens.

    Beam search and ``num_return_sequences`` repeat each prompt row, but not its encoded images.
    """
    repeats = sum(visual) // sum(sizes) if sum(sizes) else 1
    starts = [0, *accumulate(sizes)]
    owners: list[tuple[int, int]] = []
    at = end = 0  # images of the prompt row that ``row`` repeats: at..end
    for row, tokens in enumerate(visual):
        if row and row % max(repeats, 1) == 0:
            at = end
        end = at
        while end < len(sizes) and starts[end + 1] - starts[at] <= tokens:
            end += 1
        if starts[end] - starts[at] != tokens:
            raise ValueError(
                f"input_ids: row {row} has {tokens} image tokens, which is no whole number of "
                f"images of {list(sizes[at:])} tokens"
            )
        owners.extend((i, row) for i in range(at, end))
    if end != len(sizes):
        raise ValueError(f"input_ids: image tokens for {end} images, but {len(sizes)} were encoded")
    return owners
