"""Faults of a prompt that only the device sees: they ride to the host with a plan's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FAULTS = (
    "past_key_values: several turns on a StaticCache are not supported, and this one holds tokens; "
    "call reset() on it before the next prompt, or use a DynamicCache",
    "attention_mask: row {row} is not a causal mask with padding, and only such a mask says which "
    "tokens there are; pass [batch, tokens] instead",
)
"""Of the kinds of ``faults``, by number."""


def check_faults(found: Mapping[int, Sequence[int]]) -> None:
    """ValueError where a row has a fault: ``found`` holds each kind's flags, one per row."""
    for kind, rows in found.items():
        for row, wrong in enumerate(rows):
            if wrong:
                raise ValueError(FAULTS[kind].format(row=row))
