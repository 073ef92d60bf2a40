"""Thin shim: decides whether a native library can be built, and lets CMake build it.

ERASE_KERNELS_NATIVE=1 makes a missing torch or compiler an error; =0 builds pure Python.
ERASE_KERNELS_CUDA=1 makes a missing nvcc an error; =0 leaves the CUDA kernels out. Unset, they are
built where torch is a CUDA build and nvcc 13 is there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MISSING_NOTE = "_native_missing.txt"
SWITCH = "ERASE_KERNELS_NATIVE"
CUDA_SWITCH = "ERASE_KERNELS_CUDA"
ARCHITECTURES = "ERASE_KERNELS_CUDA_ARCHITECTURES"  # instead of CMakeLists.txt's, as "90-real"
TOOLKIT = "/usr/local/cuda"  # where NVIDIA's packages put it
OWN_TOOLKIT = ROOT / "build" / "cuda-toolkit" / "nvidia" / "cu13"  # make cuda-toolkit


def find_torch() -> Path | None:
    """Directory of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def find_tool(name: str) -> str | None:
    """A build tool on PATH, or the one a Python package of that name brings."""
    found = shutil.which(name)
    if found or importlib.util.find_spec(name) is None:
        return found
    module = __import__(name)
    path = Path(getattr(module, f"{name.upper()}_BIN_DIR" if name == "cmake" else "BIN_DIR")) / name
    return str(path) if path.exists() else None


def why_not_native() -> str:
    """Why no native library can be built here; empty if one can."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 when the package was built"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"built on {platform.system()} {platform.machine()}; only Linux x86_64 is supported"
    if find_torch() is None:
        return "torch was not installed when the package was built (build isolation hides it)"
    if find_tool("cmake") is None:
        return "cmake was not found when the package was built"
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compiler):
        return f"no C++ compiler ({', '.join(compiler)}) was found when the package was built"
    return ""


def find_nvcc() -> str | None:
    """The CUDA compiler: of CUDACXX, CUDA_HOME, PATH, the usual place or `make cuda-toolkit`."""
    if compiler := os.environ.get("CUDACXX"):
        return shutil.which(compiler)
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", f"{TOOLKIT}/bin/nvcc"]
    places += [str(OWN_TOOLKIT / "bin" / "nvcc")]
    return next(filter(None, map(shutil.which, places)), None)


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build; it is not imported."""
    root = find_torch()
    return root is not None and (root / "lib" / "libtorch_cuda.so").exists()


def cuda_options() -> list[str]:
    """CMake options that switch the CUDA kernels on or off."""
    wanted, nvcc = os.environ.get(CUDA_SWITCH), find_nvcc()
    if wanted == "1" and nvcc is None:
        raise SystemExit(
            f"{CUDA_SWITCH}=1, but no nvcc was found (CUDACXX, CUDA_HOME, PATH): "
            "docs/install.md says where to get one"
        )
    if nvcc is None or wanted == "0" or (wanted != "1" and not torch_has_cuda()):
        return ["-DERASE_KERNELS_CUDA=OFF"]
    options = ["-DERASE_KERNELS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    if architectures := os.environ.get(ARCHITECTURES):
        options += [f"-D{ARCHITECTURES}={architectures}"]
    return options


class CMakeBuild(build_ext):
    """Builds the extension with CMake, in a directory kept per torch so that rebuilds are fast."""

    def build_extension(self, ext: Extension) -> None:
        torch_root, cmake = find_torch(), find_tool("cmake")
        if torch_root is None or cmake is None:
            raise RuntimeError("torch or cmake vanished during the build")
        cuda = cuda_options()
        parts = (torch_root, os.environ.get("CXX"), *cuda)
        key = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12]
        build = ROOT / "build" / f"native-{key}"
        fingerprint = runpy.run_path(str(ROOT / "erase_kernels" / "_source_hash.py"))["source_hash"]
        configure = [cmake, "-S", str(ROOT), "-B", str(build), f"-DTORCH_ROOT={torch_root}"]
        configure += [f"-DSOURCE_HASH={fingerprint(ROOT, 'OFF' not in cuda[0])}", *cuda]
        if not (build / "CMakeCache.txt").exists() and (ninja := find_tool("ninja")):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(configure, check=True)
        subprocess.run(
            [cmake, "--build", str(build), "--parallel", os.environ.get("MAX_JOBS", "2")],
            check=True,
        )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_suffix(".new")  # a running process keeps the library it has mapped
        shutil.copyfile(build / target.name, staged)
        staged.replace(target)


class BuildPython(build_py):
    """Leaves a note of the reason in a package without a native library."""

    def run(self) -> None:
        super().run()
        editable = getattr(self, "editable_mode", False)
        package = (ROOT if editable else Path(self.build_lib)) / "erase_kernels"
        note = package / MISSING_NOTE
        if reason:
            note.write_text(reason + "\n")
        else:
            note.unlink(missing_ok=True)


reason = why_not_native()
if reason and os.environ.get(SWITCH) == "1":
    raise SystemExit(f"{SWITCH}=1, but the native library cannot be built: {reason}")

setup(
    ext_modules=[] if reason else [Extension("erase_kernels._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
    options={} if reason else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
