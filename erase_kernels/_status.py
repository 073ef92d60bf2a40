"""Bad data found on a device, where raising at once would make the host wait.

Kernels on an accelerator cannot raise. They skip what is wrong (never reading or writing out of
bounds) and set a bit of one int32 word per device; whoever next copies something to the host takes
the word along and raises then. On the CPU the native kernels and the reference raise at once; the
word exists there for interpreted Triton kernels and emulated CUDA ones.
"""

from __future__ import annotations

import enum
import threading

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


_words: dict[torch.device, Tensor] = {}
_making = threading.Lock()  # a kernel must not be given a word that another thread's replaces


def _make_word(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is cleared outside of that mode too
        if device.type != "cuda":
            return torch.zeros(1, dtype=torch.int32, device=device)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "the first call of an operator on a device must not be captured in a CUDA graph: "
                "call it once before, or status_word(device)"
            )
        # On a stream of its own the memory comes from no graph's pool; then ready for all streams.
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            word = torch.zeros(1, dtype=torch.int32, device=device)
        stream.synchronize()
        return word


def status_word(device: torch.device) -> Tensor:
    """The status word of a device, int32 ``[1]``: 0, or bits of `Status`.

    Kernels only ever add bits. Copy it to the host together with something else, and hand the
    value to `raise_for_status`. It is made at the first use, which must not be while a CUDA graph
    is captured.

    Args:
        device: a device with index where it has one, as tensors carry it.

    Raises:
        RuntimeError: it would have to be made while a CUDA graph is captured.
    """
    word = _words.get(device)
    if word is None:
        with _making:
            word = _words.get(device)
            if word is None:
                word = _words[device] = _make_word(device)
    return word


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
    """Waits for all streams of ``device`` and raises if any operator found bad data meanwhile.

    Raises:
        ValueError: as `raise_for_status`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    raise_for_status(int(status_word(device).item()), device)
