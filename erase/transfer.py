"""Small vectors between host and device, so that the host waits once a prefill and for no more.

On CUDA a copy from or to ordinary memory makes the host wait for the whole stream. Both directions
therefore go through pinned memory, which torch caches. On other devices these are plain copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small tensor on ``device`` out of numbers nested like its shape; nothing waits."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    # torch keeps the pinned memory until the copy is done.
    pinned = torch.tensor(values, dtype=dtype, pin_memory=True)
    return pinned.to(device, non_blocking=True)


def download(values: Tensor) -> list[Any]:
    """The numbers of a small vector; waits for what made it, and not for work queued later."""
    if values.device.type != "cuda":
        numbers: list[Any] = values.tolist()
        return numbers
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))
    done.synchronize()
    numbers = host.tolist()
    return numbers


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``tensor`` on ``device``; the host waits only where the target is its own memory."""
    wait = device.type == "cpu"
    return tensor.to(device, tensor.dtype if dtype is None else dtype, non_blocking=not wait)
