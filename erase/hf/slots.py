"""Which token of the unpruned prompt each slot of the running sequence holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.hf.gather import filled, int32, pack_index, take
from erase.transfer import moved


@dataclass(frozen=True)
class Slots:
    """State of the sequence between two gathers. ``width`` slots in each of B rows."""

    width: int
    counts: tuple[int, ...]  # valid tokens of each row
    valid: Tensor | None  # bool [B, width], None: every slot of every row
    visual: Tensor  # bool [B, width], candidate image tokens
    text: Tensor  # bool [B, width], valid tokens that are neither image nor video
    positions: Tensor | None  # i64 [B, width] in the prompt, None: slot j holds token j
    empty: Tensor | None = None  # bool [B, width], slots that hold no token, None: there are none

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.counts)

    def keep_all(self) -> Tensor:
        """The mask of an identity gather: padding stays too, so nothing moves."""
        return torch.ones_like(self.visual)

    def keep_valid(self, visual: Tensor) -> Tensor:
        """Every valid slot, but of the visual ones only those in ``visual``."""
        keep = ~self.visual | visual
        return keep if self.valid is None else keep & self.valid

    def where(self, index: Tensor, rows: Tensor) -> Tensor:
        """Prompt positions of slots ``index`` of ``rows``, i64."""
        if self.positions is None:
            return index.to(torch.int64)
        return self.positions[rows.to(torch.int64), index.to(torch.int64)]

    def scatter(self, hidden: Tensor, length: int) -> Tensor:
        """Hidden states [B, width, D] back at their prompt positions; evicted ones are zero."""
        if self.positions is None:
            return hidden
        target, spare = self.positions, 0
        if self.empty is not None:
            # Empty slots go to a spare row that is cut off.
            target, spare = torch.where(self.empty, length, target), 1
        target = moved(target, hidden.device)
        full = hidden.new_zeros(self.batch, length + spare, hidden.shape[-1])
        full = full.scatter(1, target[..., None].expand_as(hidden), hidden)
        return full[:, :length]

    def compact(self, keep: Tensor, counts: Sequence[int], identity: bool) -> Move:
        """Pack the slots of ``keep`` [B, width] to the front; ``counts`` are its row sums.

        ``identity``: ``keep`` is all true, padding included; ``counts`` then count valid slots.
        """
        device = keep.device
        width = self.width if identity else max(counts)
        placed = int32([width] * self.batch if identity else counts, device)
        index = pack_index(keep, width)
        valid, empty = self.valid, self.empty
        if not identity:
            ragged = any(count != width for count in counts)
            valid = filled(placed, width) if ragged else None
            empty = None if valid is None else ~valid
        positions = self.positions
        if positions is None:
            steps = torch.arange(self.width, device=device)
            positions = steps.expand(self.batch, self.width)
        slots = Slots(
            width=width,
            counts=tuple(counts),
            valid=valid,
            visual=take(self.visual, index, placed),
            text=take(self.text, index, placed),
            positions=take(positions, index, placed),
            empty=empty,
        )
        return Move(slots, index, placed, keep)


@dataclass(frozen=True)
class Move:
    """A gather: the slots after it, and the index tensors of ``compact_rows``/``compact_kv_``."""

    slots: Slots
    index: Tensor  # i32 [B, width]
    counts: Tensor  # i32 [B]
    keep: Tensor  # bool [B, width before], what stays


def join_valid(
    past_valid: Tensor | None, past: int, slots: Slots, device: torch.device
) -> Tensor | None:
    """Validity of all cache slots, past and new: bool [B, past + width], None if all are valid."""
    if past_valid is None and slots.valid is None:
        return None
    ones = torch.ones
    head = past_valid
    if head is None:
        head = ones(slots.batch, past, dtype=torch.bool, device=device)
    new = slots.valid
    if new is None:
        new = ones(slots.batch, slots.width, dtype=torch.bool, device=device)
    return torch.cat([head, new], dim=1)
