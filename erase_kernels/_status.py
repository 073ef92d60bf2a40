"""Bad data found on a device, where raising at once would make the host wait.

Kernels on an accelerator cannot raise. They skip what is wrong (never reading or writing out of
bounds) and set a bit of one int32 word per device; whoever next copies something to the host takes
the word along and raises then. On the CPU the native kernels and the reference raise at once; the
word exists there for interpreted Triton kernels.
"""

from __future__ import annotations

import enum
import functools

import torch
from torch import Tensor


class Status(enum.IntFlag):
    """Bits of the status word: which argument held bad data."""

    OFFSETS = 1
    COUNTS = 2
    CAPACITY = 4
    THRESHOLDS = 8
    PIXELS = 16
    INDICES = 32
    SCORES = 64
    KEEP = 128
    BLOCK_TABLE = 256


_MESSAGES = {
    Status.OFFSETS: "offsets: expected 0, never falling, up to the number of entries",
    Status.COUNTS: "counts: expected between 0 and the number of entries there are",
    Status.CAPACITY: "capacity: expected at least the sum of counts",
    Status.THRESHOLDS: "thresholds: expected strictly descending values",
    Status.PIXELS: "pixel_values: expected normalised uint8 gray levels; check mean, std and scale "
    "against the image processor",
    Status.INDICES: "rows, columns: expected positions inside query and key",
    Status.SCORES: "query, key: expected scores without NaN",
    Status.KEEP: "keep: expected strictly ascending positions inside the tensors",
    Status.BLOCK_TABLE: "block_table: expected existing blocks, each in one place only",
}


@functools.cache
def _word(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is cleared outside of that mode too
        return torch.zeros(1, dtype=torch.int32, device=device)


def status_word(device: torch.device) -> Tensor:
    """The status word of a device, int32 ``[1]``: 0, or bits of `Status`.

    Kernels only ever add bits. Copy it to the host together with something else, and hand the
    value to `raise_for_status`. It is made at the first use, which must not be while a CUDA graph
    is captured.

    Args:
        device: a device with index where it has one, as tensors carry it.
    """
    return _word(device)


def raise_for_status(value: int, device: torch.device) -> None:
    """Raises what a status word of ``value`` says, and clears the device's word.

    Raises:
        ValueError: ``value`` is not 0; it names every argument that held bad data.
    """
    if value == 0:
        return
    status_word(device).zero_()
    found = [text for bit, text in _MESSAGES.items() if value & bit]
    raise ValueError("; ".join(found))


def check_status(device: torch.device) -> None:
    """Waits for ``device`` and raises if any operator found bad data since the last check.

    Raises:
        ValueError: as `raise_for_status`.
    """
    raise_for_status(int(status_word(device).item()), device)
