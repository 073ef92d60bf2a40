"""Loads the native library beside this file, and remembers why when it cannot."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import traceback
from pathlib import Path

import torch

from erase_kernels import _status
from erase_kernels._source_hash import embedded_hash, source_hash

PACKAGE = Path(__file__).resolve().parent
LIBRARY = PACKAGE / "_C.abi3.so"
MISSING_NOTE = PACKAGE / "_native_missing.txt"  # setup.py says here why it built no library
CLONE_SWITCH = "ERASE_KERNELS_CPU_CLONE"  # names the instruction set the CPU kernels shall use
REBUILD_HINT = "run `make build` (or `pip install -e . --no-build-isolation`)"


@dataclasses.dataclass(frozen=True)
class NativeStatus:
    """State of the native library in this process.

    Attributes:
        available: its operators are registered.
        stale: it exists but was built from other sources, and was not loaded.
        reason: why it is not available; empty when it is.
        build_hash: fingerprint of the sources it was built from; empty when there is none.
        cpu_clone: instruction set the CPU kernels run with; empty when not available.
        cuda_build: what its CUDA kernels were compiled with and for, as "13.0: 8.0+PTX 9.0"; empty
            when it has none.
    """

    available: bool
    stale: bool = False
    reason: str = ""
    build_hash: str = ""
    cpu_clone: str = ""
    cuda_build: str = ""

    @property
    def cuda_major(self) -> int:
        """Major version of the CUDA toolkit it was built with."""
        return int(self.cuda_build.partition(".")[0])

    @property
    def capabilities(self) -> list[str]:
        """Compute capabilities of the CUDA kernels, as "9.0", or "8.0+PTX" with PTX beside."""
        return self.cuda_build.partition(":")[2].split()


_WORD_SOURCE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int32)


@_WORD_SOURCE
def _word_address(index: int) -> int:
    try:
        device = torch.device("cuda", index) if index >= 0 else torch.device("cpu")
        return _status.status_word(device).data_ptr()
    except BaseException:  # it cannot pass through C, which would take garbage for an address
        traceback.print_exc()
        return 0  # and the operator raises


def give_status_words(library: ctypes.CDLL) -> None:
    """Lets the CUDA kernels of a library find the status word of a device (`_status`)."""
    library.erase_kernels_set_status_source(_word_address)


def _load() -> NativeStatus:
    if not LIBRARY.exists():
        note = MISSING_NOTE.read_text().strip() if MISSING_NOTE.exists() else "never built here"
        return NativeStatus(False, reason=f"{LIBRARY.name} is not installed: {note}")
    built = embedded_hash(LIBRARY) or ""
    root = PACKAGE.parent
    beside_sources = (root / "csrc").is_dir() and (root / "CMakeLists.txt").is_file()
    if beside_sources and built not in (source_hash(root, cuda) for cuda in (False, True)):
        reason = f"{LIBRARY.name} was not built from the present csrc/: {REBUILD_HINT}"
        return NativeStatus(False, stale=True, reason=reason, build_hash=built)
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:  # wrong architecture, libc or torch: the package works without
        return NativeStatus(False, reason=f"{LIBRARY.name} does not load: {error}")
    library = ctypes.CDLL(str(LIBRARY))
    library.erase_kernels_cpu_clone.restype = ctypes.c_char_p
    running = library.erase_kernels_cpu_clone().decode()
    wanted = os.environ.get(CLONE_SWITCH, running)
    if wanted != running:
        raise ImportError(f"{CLONE_SWITCH}={wanted} is not available here: the best is {running}")
    return NativeStatus(True, build_hash=built, cpu_clone=running, cuda_build=_cuda_half(library))


def _cuda_half(library: ctypes.CDLL) -> str:
    """Connects the CUDA kernels, and says what they were built with; empty if there are none."""
    if not hasattr(library, "erase_kernels_cuda_build"):
        return ""
    give_status_words(library)
    library.erase_kernels_cuda_build.restype = ctypes.c_char_p
    return str(library.erase_kernels_cuda_build().decode())


STATUS = _load()
