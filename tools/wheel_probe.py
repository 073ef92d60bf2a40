"""Run by the Python of a clean environment: prints what an installed wheel is and does, as JSON.

Nothing of the checkout is imported. Arguments are ``symbol=offset`` of pointers in the library
that the loader fills in; the report says which of them it found a function for.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

import erase_kernels
from erase_kernels import _backends, _native

KEYS = ("CPU", "CUDA")


def loaded_at(library: Path) -> int:
    """Address at which a library lies in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(library):
            return int(fields[0].partition("-")[0], 16)
    raise SystemExit(f"{library} is not loaded")


def filled(slots: dict[str, int]) -> dict[str, bool]:
    """Whether the loader found the functions whose pointers lie at these offsets."""
    base = loaded_at(_native.LIBRARY) if slots else 0
    return {
        name: ctypes.c_uint64.from_address(base + offset).value != 0
        for name, offset in slots.items()
    }


def registered(operator: str) -> list[str]:
    """Dispatch keys with a kernel for the native implementation of an operator."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    name = f"erase_kernels::{operator}_native"
    return [key for key in KEYS if has_kernel(name, key)]


def refusal() -> str:
    """What the native backend says to CUDA tensors; empty if it takes them."""
    try:
        erase_kernels.choose_backend("patch_entropy", torch.device("cuda"), "native")
    except RuntimeError as error:
        return str(error)
    return ""


def report(slots: dict[str, int]) -> dict[str, Any]:
    """Everything that the check wants to know."""
    return {
        "file": erase_kernels.__file__,
        "path": sys.path,
        "cuda": torch.version.cuda or "",
        "info": dataclasses.asdict(erase_kernels.backend_info()),
        "printed": str(erase_kernels.backend_info()),
        "refusal": refusal(),
        "registered": {name: registered(name) for name in _backends.TRITON_OPERATORS},
        "filled": filled(slots),
    }


if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[1:])
    print(json.dumps(report({name: int(offset) for name, offset in pairs})))
