"""What both reports on compiled kernels share: limits, faults, names of operators, tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from erase_kernels._backends import TRITON_OPERATORS

# KiB of shared memory a block may have, by compute capability (CUDA programming guide). No
# compiler refuses more; the launch would fail.
SHARED_KIB = {80: 163, 90: 227, 100: 227, 120: 99}
COLUMNS = {  # heading -> instruction counts it joins, see `tools.sass`
    "SASS": ("total",),
    "LDG 128/64/32/16/8": ("ldg128", "ldg64", "ldg32", "ldg16", "ldg8"),
    "async": ("async",),
    "STG": ("stg",),
    "mma": ("mma",),
    "wgmma": ("wgmma",),
    "MUFU": ("mufu",),
    "ATOM": ("atom",),
    "BAR": ("bar",),
    "FFMA/FMUL/FADD": ("ffma", "fmul", "fadd"),
    "POPC": ("popc",),
    "VOTE": ("vote",),
}


def faults(kernel: Mapping[str, Any], architecture: int) -> list[str]:
    """What is wrong with one compiled kernel."""
    if "error" in kernel:
        return [str(kernel["error"])]
    if "mix" not in kernel:
        return []  # whoever compiled it says what broke
    found, mix = [], kernel["mix"]
    if mix["local"]:
        found.append(f"spills: {mix['local']} loads and stores of local memory")
    if kernel["stack"]:
        found.append(f"a stack frame of {kernel['stack']} bytes")
    limit = SHARED_KIB.get(architecture, min(SHARED_KIB.values()))
    if kernel["shared"] > limit * 1024:
        found.append(f"{kernel['shared']} bytes of shared memory; the limit is {limit} KiB")
    if kernel["luma"] and mix["ffma"]:
        found.append(f"{mix['ffma']} fused multiply-adds on the luma path")
    return found


def operator_of(name: str) -> str:
    """The operator that a kernel's name begins with; an operator may have several kernels."""
    head = re.split(r"\W", name, maxsplit=1)[0]
    fitting = [o for o in TRITON_OPERATORS if head == o or head.startswith(f"{o}_")]
    return max(fitting, key=len, default="")


def mix_cells(mix: Mapping[str, int], columns: Mapping[str, Sequence[str]] = COLUMNS) -> list[str]:
    """One row's cells under ``columns``."""
    return ["/".join(str(mix[key]) for key in keys) for keys in columns.values()]


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return lines


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose heading is the first row."""
    heading, *others = rows
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in others)]
