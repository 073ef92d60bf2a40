"""Fingerprint of the native sources. Imports nothing but the standard library: setup.py runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

MARKER = b"ERASE_KERNELS_SOURCE_HASH="  # precedes the fingerprint in the library's bytes
HASH_CHARACTERS = 64  # hexadecimal SHA-256
NATIVE_SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def source_hash(root: Path, cuda: bool = False) -> str:
    """SHA-256 over names and contents of ``root/csrc`` and ``root/CMakeLists.txt``.

    Without ``cuda``, for a library that has no CUDA kernels, ``csrc/cuda`` does not count.
    """
    files = sorted(p for p in (root / "csrc").rglob("*") if p.suffix in NATIVE_SUFFIXES)
    files = [p for p in files if cuda or p.parent.name != "cuda"]
    digest = hashlib.sha256()
    for path in [*files, root / "CMakeLists.txt"]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def embedded_hash(library: Path) -> str | None:
    """The fingerprint a built library carries; read from its bytes, without loading it."""
    content = library.read_bytes()
    start = content.find(MARKER)
    if start < 0:
        return None
    start += len(MARKER)
    return content[start : start + HASH_CHARACTERS].decode("ascii", "replace")
