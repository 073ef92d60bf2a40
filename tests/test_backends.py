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


def test_no_silent_fallback_on_cuda() -> None:
    with pytest.raises(RuntimeError, match=r"native \(the native library has no cuda kernels\)"):
        choose_backend("patch_entropy", CUDA)
    with pytest.raises(RuntimeError, match=r"triton \(.*\)"):
        choose_backend("patch_entropy", CUDA, "triton")
    assert choose_backend("patch_entropy", CUDA, "reference") == "reference"


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match="backend: expected one of reference, native, triton or None"
    ):
        patch_entropy(make_image(28, 28), 28, backend="fastest")


def test_backend_info_names_everything() -> None:
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
