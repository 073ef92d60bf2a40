"""The build: what the library links and carries, and a package that has no library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from erase_kernels import _native
from erase_kernels._source_hash import embedded_hash, source_hash

ROOT = Path(__file__).resolve().parent.parent


def readelf(flag: str) -> str:
    tool = shutil.which("readelf")
    assert tool, "readelf belongs to the compiler's tools"
    command = [tool, flag, str(_native.LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_library_is_built_from_these_sources() -> None:
    cuda = bool(_native.STATUS.cuda_build)
    assert embedded_hash(_native.LIBRARY) == source_hash(ROOT, cuda)


def test_it_brings_libtorch_and_no_python() -> None:
    """libtorch.so brings the CUDA half of torch into scope where there is one."""
    needed = re.findall(r"NEEDED.*\[(.*)\]", readelf("-d"))
    assert "libtorch.so" in needed
    assert "libtorch_cpu.so" in needed
    assert not [n for n in needed if "python" in n or "gomp" in n or "c10" in n], needed
    assert "RPATH" not in readelf("-d")


def test_it_uses_the_stable_interface_only() -> None:
    undefined = re.findall(r"UND (\S+)", readelf("-Ws"))
    assert not [name for name in undefined if "c10" in name or "2at" in name], undefined
    assert any(name.startswith("aoti_torch") for name in undefined)


def test_a_changed_source_makes_it_stale(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    shutil.copy(_native.LIBRARY, tmp_path / "erase_kernels")
    assert run_info(tmp_path)["native library"] == "available"
    with (tmp_path / "csrc" / "checks.h").open("a") as file:
        file.write("// changed\n")
    assert "was not built from the present csrc/" in run_info(tmp_path)["native library"]


def test_names_and_contents_count(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    seen = {source_hash(tmp_path)}
    (tmp_path / "csrc" / "checks.h").rename(tmp_path / "csrc" / "checks2.h")
    seen.add(source_hash(tmp_path))
    with (tmp_path / "CMakeLists.txt").open("a") as file:
        file.write("# changed\n")
    seen.add(source_hash(tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("ERASE_KERNELS_NATIVE", "0", "ERASE_KERNELS_NATIVE=0 when the package was built"),
        ("CXX", "no-such-compiler", "no C++ compiler (no-such-compiler) was found"),
    ],
)
def test_pure_python_wheel(tmp_path: Path, setting: str, value: str, reason: str) -> None:
    """Without a compiler the wheel holds no library, and backend_info() says why."""
    copy_sources(tmp_path / "source")
    done = build_wheel(tmp_path, {setting: value})
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert not [name for name in names if name.endswith(".so")]
    assert "erase_kernels/py.typed" in names
    settings = (ROOT / "erase_kernels" / "triton_kernels" / "configs").glob("*.json")
    assert {f"erase_kernels/triton_kernels/configs/{path.name}" for path in settings} <= set(names)
    info = run_info(tmp_path / "installed")
    assert reason in info["native library"]
    assert info["CPU tensors"].startswith("reference")


def test_native_can_be_insisted_on(tmp_path: Path) -> None:
    copy_sources(tmp_path / "source")
    done = build_wheel(tmp_path, {"ERASE_KERNELS_NATIVE": "1", "CXX": "no-such-compiler"})
    assert done.returncode != 0
    assert "ERASE_KERNELS_NATIVE=1, but the native library cannot be built" in done.stderr


def test_cuda_kernels_can_be_insisted_on(tmp_path: Path) -> None:
    copy_sources(tmp_path / "source")
    done = build_wheel(tmp_path, {"ERASE_KERNELS_CUDA": "1", "CUDACXX": "no-such-nvcc"})
    assert done.returncode != 0
    assert "ERASE_KERNELS_CUDA=1, but no nvcc was found" in done.stderr


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import erase_kernels"],
        env={**os.environ, "ERASE_KERNELS_CPU_CLONE": "mmx"},
        capture_output=True,
        text=True,
    )
    assert "ERASE_KERNELS_CPU_CLONE=mmx is not available here" in done.stderr


def copy_sources(target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in ("csrc", "erase_kernels"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_native_missing.txt")
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, target / name)


def build_wheel(target: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(target)],
        cwd=target / "source",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def run_info(root: Path) -> dict[str, str]:
    """Rows of ``python -m erase_kernels`` for the package under ``root``."""
    done = subprocess.run(
        [sys.executable, "-m", "erase_kernels"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines()]
    return dict(rows)


def test_torch_is_at_least_the_declared_version() -> None:
    """TORCH_TARGET_VERSION in CMakeLists.txt is the oldest torch of pyproject.toml."""
    declared = re.search(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    target = re.search(r"TORCH_TARGET_VERSION=0x(..)(..)", (ROOT / "CMakeLists.txt").read_text())
    assert declared
    assert target
    assert [int(part) for part in declared.groups()] == [int(p, 16) for p in target.groups()]
    running = [int(part) for part in str(torch.__version__).split(".")[:2]]
    assert running >= [int(part) for part in declared.groups()]
