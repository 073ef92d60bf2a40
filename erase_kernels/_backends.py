"""Which implementations exist here, why the others do not, and the one place that decides."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch

from erase_kernels import _native, _schemas

BACKENDS = ("reference", "native", "triton")

# What ``backend=None`` takes for CUDA tensors. By measurement: the Triton kernels were checked and
# timed on a GPU (bench/results); the native CUDA kernels have run in an emulator only.
CUDA_ORDER = ("triton", "native")

# One implementation beside the reference, of torch's operators: ``backend=None`` on every device.
COMPOSITE = ("patch_edges", "patch_edges_from_pixels")
COMPOSITE_BACKEND = "torch"

OLDEST_TRITON = (3, 6)  # paired with torch 2.11
INTERPRETER_SWITCH = "TRITON_INTERPRET"  # triton's own: 1 runs kernels on the CPU, slowly

CUDA_BUILT = torch.backends.cuda.is_built()  # a constant here: a tracer cannot ask

_warned_reference = False


@dataclasses.dataclass(frozen=True)
class TritonStatus:
    """State of triton in this process; it is not imported before a kernel of it runs.

    Attributes:
        version: of the installed package, or why there is none.
        reason: why its kernels cannot run on any device; empty when they can.
        interpreted: whether they run in triton's interpreter, on the CPU.
    """

    version: str
    reason: str = ""
    interpreted: bool = False


def _find_triton() -> TritonStatus:
    # The metadata answers without importing triton, which takes seconds.
    if importlib.util.find_spec("triton") is None:
        return TritonStatus("not installed", "triton is not installed")
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return TritonStatus("installed, version unknown", "triton has no version")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return TritonStatus(version, f"triton {version} is older than {oldest}")
    return TritonStatus(version, interpreted=os.environ.get(INTERPRETER_SWITCH) == "1")


TRITON = _find_triton()


def _native_reason(device: torch.device) -> str:
    status = _native.STATUS
    if not status.available:
        return status.reason
    if device.type == "cpu":
        return ""
    if device.type != "cuda" or not status.cuda_build:
        return f"the native library has no {device.type} kernels"
    if torch.version.hip:
        return "its kernels are for CUDA, and this torch was built for ROCm"
    if not CUDA_BUILT:
        return "this torch was built without CUDA"
    version = torch.version.cuda or "0"
    if int(version.partition(".")[0]) != status.cuda_major:
        return f"its kernels need CUDA {status.cuda_major}, and this torch was built with {version}"
    return _capability_reason(device)


def _capability_reason(device: torch.device) -> str:
    # Not asked where a tracer could not follow, nor before there is a tensor on the device.
    if device.index is None or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return ""
    capability = _capability(device.index)
    if any(runs_on(built, capability) for built in _native.STATUS.capabilities):
        return ""
    found = ".".join(map(str, capability))
    return f"its kernels are for {_native.STATUS.cuda_build}, and this device has {found}"


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether code built for a compute capability, as "9.0" or "8.0+PTX", runs on a device.

    Machine code runs on its major version, from its minor one on; PTX on everything later.
    """
    number, _, ptx = built.partition("+")
    major, minor = (int(part) for part in number.split("."))
    if ptx:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _triton_reason(device: torch.device) -> str:
    if TRITON.reason:
        return TRITON.reason
    wanted = "cpu" if TRITON.interpreted else "cuda"
    if device.type == wanted == "cuda" and not CUDA_BUILT:
        return "this torch was built without CUDA"
    if device.type == wanted:
        return ""
    if TRITON.interpreted:
        return f"{INTERPRETER_SWITCH}=1 runs Triton kernels on the CPU"
    return f"Triton kernels run on CUDA devices (on the CPU with {INTERPRETER_SWITCH}=1, slowly)"


REASONS: dict[str, Callable[[torch.device], str]] = {  # why a backend cannot run on a device
    "reference": lambda device: "",
    "native": lambda device: _native_reason(device),
    "triton": lambda device: _triton_reason(device),
}


def unavailable_reason(backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run on ``device``; empty if it can."""
    return REASONS[backend](device)


def preferred(device: torch.device) -> str:
    """What ``backend=None`` asks for: native; on CUDA devices the first of `CUDA_ORDER`."""
    if device.type == "cpu":
        return "native"
    there = [name for name in CUDA_ORDER if not unavailable_reason(name, device)]
    return there[0] if there else CUDA_ORDER[0]


def describe(device: torch.device) -> str:
    """One clause per backend: available, or why not."""
    clauses = []
    for name in BACKENDS:
        reason = unavailable_reason(name, device)
        clauses.append(f"{name} ({reason})" if reason else f"{name} (available)")
    return ", ".join(clauses)


def choose(operator: str, device: torch.device, backend: str | None = None) -> str:
    """Decides which implementation of ``operator`` runs for tensors on ``device``.

    Args:
        operator: name of the public function, for messages.
        device: where the operands are.
        backend: a name of `BACKENDS`, or None: native, and for CUDA tensors the first of
            `CUDA_ORDER` that is there. None takes the reference only for CPU tensors where the
            native library is absent, and warns once. Operators in `COMPOSITE`: "torch" (None's
            choice) or "reference".

    Returns:
        The name of the backend.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available here, or the native library is stale.
    """
    if operator in COMPOSITE:
        return _choose_composite(operator, backend)
    if backend is not None and backend not in REASONS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    wanted = preferred(device) if backend is None else backend
    reason = unavailable_reason(wanted, device)
    if not reason:
        return wanted
    if backend is None and device.type == "cpu" and not _native.STATUS.stale:
        _warn_reference(reason)
        return "reference"
    raise RuntimeError(f"{operator}: backend {wanted} cannot run on {device}; {describe(device)}")


def _choose_composite(operator: str, backend: str | None) -> str:
    if backend not in (None, "reference", COMPOSITE_BACKEND):
        there = f"reference, {COMPOSITE_BACKEND} or None (all that {operator} has)"
        raise ValueError(f"backend: expected {there}, got {backend!r}")
    return backend or COMPOSITE_BACKEND


def _warn_reference(reason: str) -> None:
    global _warned_reference
    if _warned_reference or torch.compiler.is_compiling():
        return
    _warned_reference = True
    warnings.warn(
        f"erase_kernels runs its slow reference implementations on the CPU: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )


@dataclasses.dataclass(frozen=True)
class BackendInfo:
    """Versions, and the state of every backend. Prints as a small table.

    Attributes:
        versions: component -> version, or why it is missing.
        native: "available", or why not.
        native_hash: fingerprint of the sources the library was built from; empty when absent.
        cpu_clone: instruction set the native CPU kernels run with; empty when not available.
        cuda_build: toolkit and compute capabilities of the native CUDA kernels; empty without.
        cpu: which backend ``backend=None`` takes for CPU tensors.
        cuda: which backend ``backend=None`` takes for CUDA tensors, or why there is none.
    """

    versions: dict[str, str]
    native: str
    native_hash: str
    cpu_clone: str
    cuda_build: str
    cpu: str
    cuda: str

    def __str__(self) -> str:
        rows = list(self.versions.items())
        rows += [("native library", self.native)]
        if self.native_hash:
            rows += [("native build", self.native_hash[:12])]
        if self.cpu_clone:
            rows += [("CPU instruction set", self.cpu_clone)]
        if self.cuda_build:
            rows += [("native CUDA kernels", self.cuda_build)]
        rows += [("CPU tensors", self.cpu), ("CUDA tensors", self.cuda)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def backend_info(version: str) -> BackendInfo:
    """Collects `BackendInfo`; ``version`` is the package's own."""
    status = _native.STATUS
    versions = {
        "erase_kernels": version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "triton": TRITON.version,
    }
    cuda = torch.device("cuda")
    reasons = {name: unavailable_reason(name, cuda) for name in ("native", "triton")}
    none = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return BackendInfo(
        versions=versions,
        native="available" if status.available else status.reason,
        native_hash=status.build_hash,
        cpu_clone=status.cpu_clone,
        cuda_build=status.cuda_build,
        cpu="native" if status.available else f"reference ({status.reason})",
        cuda=f"none ({none})" if all(reasons.values()) else preferred(cuda),
    )


# --- Triton kernels, loaded at their first call --------------------------------------------------

TRITON_OPERATORS = {  # private operator without its suffix -> module of triton_kernels
    "patch_entropy": "patch_entropy",
    "patch_entropy_from_pixels": "patch_entropy_from_pixels",
    "complexity_plan": "complexity_plan",
    "segmented_topk": "segmented_topk",
    "text_to_vision_scores": "text_to_vision_scores",
    "compact_kv": "compact_kv",
    "compact_kv_paged": "compact_kv",
    "compact_rows": "compact_rows",
}

_library = torch.library.Library(_schemas.NAMESPACE, "IMPL")


def _load_and_run(operator: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        module = importlib.import_module(
            f"erase_kernels.triton_kernels.{TRITON_OPERATORS[operator]}"
        )
        return getattr(module, operator)(*arguments)

    return run


for _operator in TRITON_OPERATORS:
    for _key in ("CPU", "CUDA"):
        _library.impl(f"{_operator}_triton", _load_and_run(_operator), _key)
