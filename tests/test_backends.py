"""The one place that decides, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings

import pytest
import torch

import erase_kernels
from erase_kernels import _backends, _native, backend_info, choose_backend, patch_entropy
from erase_kernels.testing import make_image, record_ops

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
ABSENT = _native.NativeStatus(False, reason="_C.abi3.so is not installed: no C++ compiler")
WITH_CUDA = dataclasses.replace(_native.STATUS, cuda_build="13.0: 8.0+PTX 9.0")
WITHOUT_CUDA = dataclasses.replace(_native.STATUS, cuda_build="")
STALE = dataclasses.replace(ABSENT, stale=True, reason="built from other sources: run `make build`")


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch):
    """Replaces the state of the native library."""

    def replace(value: _native.NativeStatus) -> None:
        monkeypatch.setattr(_native, "STATUS", value)
        monkeypatch.setattr(_backends, "_warned_reference", False)

    return replace


def test_native_by_default_on_the_cpu() -> None:
    assert choose_backend("patch_entropy", CPU) == "native"
    with record_ops() as ops:
        patch_entropy(make_image(28, 28), 28)
    assert ops == ["erase_kernels::patch_entropy_native"]


def test_the_reference_runs_when_asked_for() -> None:
    with record_ops() as ops:
        patch_entropy(make_image(28, 28), 28, backend="reference")
    assert ops == []


def test_without_the_library_the_reference_runs_and_warns_once(status) -> None:
    status(ABSENT)
    with pytest.warns(RuntimeWarning, match=r"slow reference .* no C\+\+ compiler"):
        assert choose_backend("patch_entropy", CPU) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("patch_entropy", CPU) == "reference"
    assert "reference (_C.abi3.so is not installed" in str(backend_info())


def test_native_where_it_is_absent_is_an_error(status) -> None:
    status(ABSENT)
    with pytest.raises(RuntimeError, match=r"native cannot run on cpu.*reference \(available\)"):
        patch_entropy(make_image(28, 28), 28, backend="native")


def test_a_stale_library_is_an_error(status) -> None:
    status(STALE)
    for backend in (None, "native"):
        with pytest.raises(RuntimeError, match="run `make build`"):
            patch_entropy(make_image(28, 28), 28, backend=backend)
    assert patch_entropy(make_image(28, 28), 28, backend="reference").shape == (1,)
    assert "run `make build`" in backend_info().native


def test_no_silent_fallback_on_cuda(status) -> None:
    status(WITHOUT_CUDA)
    with pytest.raises(RuntimeError, match=r"native \(the native library has no cuda kernels\)"):
        choose_backend("patch_entropy", CUDA)
    with pytest.raises(RuntimeError, match=r"triton \(.*\)"):
        choose_backend("patch_entropy", CUDA, "triton")
    assert choose_backend("patch_entropy", CUDA, "reference") == "reference"


NO_TRITON = _backends.TritonStatus("not installed", "triton is not installed")
COMPILED = _backends.TritonStatus("3.7.1")


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch with CUDA and compiled kernels, as far as the choice is concerned."""
    monkeypatch.setattr(_backends, "CUDA_BUILT", True)
    monkeypatch.setattr(_backends, "TRITON", COMPILED)
    return monkeypatch


def test_triton_serves_cuda_tensors(with_cuda: pytest.MonkeyPatch) -> None:
    assert choose_backend("patch_entropy", CUDA) == "triton"
    assert choose_backend("patch_entropy", CUDA, "triton") == "triton"
    assert choose_backend("patch_entropy", CPU) == "native"
    assert backend_info().cuda == "triton"
    with pytest.raises(RuntimeError, match=r"triton \(Triton kernels run on CUDA devices"):
        choose_backend("patch_entropy", CPU, "triton")


def test_triton_comes_first_until_native_is_measured(with_cuda: pytest.MonkeyPatch, status) -> None:
    status(WITH_CUDA)
    with_cuda.setattr(torch.version, "cuda", "13.0")
    assert choose_backend("patch_entropy", CUDA) == "triton"
    for backend in ("native", "triton"):
        assert choose_backend("patch_entropy", CUDA, backend) == backend
    assert "native CUDA kernels  13.0: 8.0+PTX 9.0" in str(backend_info())


def test_native_serves_cuda_tensors_without_triton(with_cuda: pytest.MonkeyPatch, status) -> None:
    status(WITH_CUDA)
    with_cuda.setattr(torch.version, "cuda", "13.2")
    with_cuda.setattr(_backends, "TRITON", NO_TRITON)
    assert choose_backend("patch_entropy", CUDA) == "native"
    assert backend_info().cuda == "native"


@pytest.mark.parametrize(
    ("cuda", "hip", "reason"),
    [
        ("12.9", None, "need CUDA 13, and this torch was built with 12.9"),
        ("14.0", None, "need CUDA 13, and this torch was built with 14.0"),
        (None, "7.1", "are for CUDA, and this torch was built for ROCm"),
    ],
)
def test_another_toolkit_is_named(
    with_cuda: pytest.MonkeyPatch, status, cuda: str | None, hip: str | None, reason: str
) -> None:
    """Triton serves there; asking for native says why it cannot run."""
    status(WITH_CUDA)
    with_cuda.setattr(torch.version, "cuda", cuda)
    with_cuda.setattr(torch.version, "hip", hip)
    with pytest.raises(RuntimeError, match=reason):
        choose_backend("patch_entropy", CUDA, "native")
    assert choose_backend("patch_entropy", CUDA) == "triton"


def test_an_old_device_is_named(with_cuda: pytest.MonkeyPatch, status) -> None:
    status(WITH_CUDA)
    with_cuda.setattr(torch.version, "cuda", "13.0")
    with_cuda.setattr(torch.cuda, "is_initialized", lambda: True)
    with_cuda.setattr(_backends, "_capability", lambda index: (7, 5))
    with pytest.raises(
        RuntimeError, match=r"are for 13\.0: 8\.0\+PTX 9\.0, and this device has 7\.5"
    ):
        choose_backend("patch_entropy", torch.device("cuda", 0), "native")
    with_cuda.setattr(_backends, "_capability", lambda index: (8, 6))
    assert choose_backend("patch_entropy", torch.device("cuda", 0), "native") == "native"


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        ("9.0", {(9, 0)}),
        ("8.0", {(8, 0), (8, 6)}),
        ("8.6", {(8, 6)}),
        ("8.0+PTX", {(8, 0), (8, 6), (9, 0), (12, 1)}),
        ("12.0", {(12, 1)}),
    ],
)
def test_where_machine_code_runs(built: str, runs: set[tuple[int, int]]) -> None:
    devices = {(7, 5), (8, 0), (8, 6), (9, 0), (12, 1)}
    assert {device for device in devices if _backends.runs_on(built, device)} == runs


def test_without_triton_every_reason_is_given(with_cuda: pytest.MonkeyPatch, status) -> None:
    status(WITHOUT_CUDA)
    with_cuda.setattr(_backends, "TRITON", NO_TRITON)
    for backend in (None, "triton"):
        with pytest.raises(RuntimeError, match=r"no cuda kernels\), triton \(triton is not inst"):
            choose_backend("patch_entropy", CUDA, backend)
    assert "triton: triton is not installed" in backend_info().cuda


@pytest.mark.parametrize(
    ("version", "reason"), [("3.5.1", "older than 3.6"), ("3.6.0", ""), ("3.10.0", ""), ("4.0", "")]
)
def test_oldest_triton(monkeypatch: pytest.MonkeyPatch, version: str, reason: str) -> None:
    monkeypatch.setattr(_backends.importlib.metadata, "version", lambda _: version)
    found = _backends._find_triton()
    assert found.version == version
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)


def test_the_interpreter_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "TRITON", dataclasses.replace(COMPILED, interpreted=True))
    assert choose_backend("patch_entropy", CPU, "triton") == "triton"
    assert choose_backend("patch_entropy", CPU) == "native"


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match="backend: expected one of reference, native, triton or None"
    ):
        patch_entropy(make_image(28, 28), 28, backend="fastest")


def test_backend_info_names_everything(status) -> None:
    status(WITHOUT_CUDA)
    info = backend_info()
    assert info.versions["torch"] == torch.__version__
    assert info.versions["erase_kernels"] == erase_kernels.__version__
    assert info.native == "available"
    assert info.cpu == "native"
    assert "no cuda kernels" in info.cuda
    assert info.cpu_clone in ("baseline", "avx2", "avx512")
    text = str(info)
    for part in ("torch", "triton", "native library", info.native_hash[:12], info.cpu_clone):
        assert part in text


def test_the_module_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "erase_kernels"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(backend_info())
