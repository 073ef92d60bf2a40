"""Where the integration tests run: on the CPU, or on a GPU (``ERASE_KERNELS_TEST_DEVICE=cuda``).

Models and prompts are made here; oracles think on the CPU and bring their masks to the model.
"""

from __future__ import annotations

import os

import torch

from erase_kernels import choose_backend

ON_GPU = os.environ.get("ERASE_KERNELS_TEST_DEVICE", "cpu") == "cuda"
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
BACKEND = choose_backend("patch_entropy", DEVICE)
"""What the operators must run on: every report and every recorded operator names it."""


def put(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Model inputs on the device."""
    return {name: value.to(DEVICE) for name, value in inputs.items()}
