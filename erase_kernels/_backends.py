"""Which implementations exist here, why the others do not, and the one place that decides."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
import warnings

import torch

from erase_kernels import _native

BACKENDS = ("reference", "native")

_warned_reference = False


def unavailable_reason(backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run on ``device``; empty if it can."""
    if backend == "reference":
        return ""
    if not _native.STATUS.available:
        return _native.STATUS.reason
    if device.type != "cpu":
        return f"the native library has no {device.type} kernels"
    return ""


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
        backend: a name of `BACKENDS`, or None for the fastest. None takes the reference only for
            CPU tensors where the native library is absent, and warns once.

    Returns:
        The name of the backend.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available here, or the native library is stale.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    wanted = "native" if backend is None else backend
    reason = unavailable_reason(wanted, device)
    if not reason:
        return wanted
    if backend is None and device.type == "cpu" and not _native.STATUS.stale:
        _warn_reference(reason)
        return "reference"
    raise RuntimeError(f"{operator}: backend {wanted} cannot run on {device}; {describe(device)}")


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
        cpu: which backend ``backend=None`` takes for CPU tensors.
        cuda: which backend ``backend=None`` takes for CUDA tensors, or why there is none.
    """

    versions: dict[str, str]
    native: str
    native_hash: str
    cpu_clone: str
    cpu: str
    cuda: str

    def __str__(self) -> str:
        rows = list(self.versions.items())
        rows += [("native library", self.native)]
        if self.native_hash:
            rows += [("native build", self.native_hash[:12])]
        if self.cpu_clone:
            rows += [("CPU instruction set", self.cpu_clone)]
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
        "triton": _triton_version(),
    }
    cuda = unavailable_reason("native", torch.device("cuda"))
    return BackendInfo(
        versions=versions,
        native="available" if status.available else status.reason,
        native_hash=status.build_hash,
        cpu_clone=status.cpu_clone,
        cpu="native" if status.available else f"reference ({status.reason})",
        cuda=f"none ({cuda})" if cuda else "native",
    )


def _triton_version() -> str:
    # The metadata answers without importing triton, which takes seconds.
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"
