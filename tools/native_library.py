"""What the native library's file says about its CUDA kernels, without loading it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "erase_kernels" / "_C.abi3.so"
# As CMakeLists.txt composes it: "13.0: 8.0+PTX 9.0 10.0 12.0".
BUILT_WITH = re.compile(rb"(?<!\d)(\d+\.\d+):((?: \d+\.\d+(?:\+PTX)?)+)\0")


def built_with(library: Path) -> tuple[str, list[str]]:
    """Version of nvcc and the compute capabilities with machine code; ("", []) without kernels."""
    found = BUILT_WITH.search(library.read_bytes())
    return (found[1].decode(), found[2].decode().split()) if found else ("", [])


def why_not_current(capability: str, library: Path | None = None) -> str:
    """Why a library cannot be what the sources give for a device; empty if it is.

    Args:
        capability: compute capability of the device, "9.0".
        library: a file; the one beside the sources.
    """
    library = library or LIBRARY
    if not library.exists():
        return f"{library.name} does not exist"
    module = runpy.run_path(str(ROOT / "erase_kernels" / "_source_hash.py"))
    if module["embedded_hash"](library) != module["source_hash"](ROOT, cuda=True):
        return f"{library.name} was not built from the present sources with CUDA kernels"
    _, capabilities = built_with(library)
    if not any(_runs_on(built, capability) for built in capabilities):
        return f"{library.name} has machine code for {', '.join(capabilities)}, not {capability}"
    return ""


def _runs_on(built: str, capability: str) -> bool:
    # Machine code runs on devices of its major version, from its minor version on.
    numbers = (built.partition("+")[0], capability)
    code, device = (tuple(map(int, text.split("."))) for text in numbers)
    return code[0] == device[0] and code[1] <= device[1]
