"""What csrc/cuda promises: one place for what differs from CUDA, and lists that agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from erase_kernels import _backends
from erase_kernels._status import Status
from tests.emu.build import CUDA, ROOT, sources

DEVICE, HOST = CUDA / "device.cuh", CUDA / "launch.h"
FILES = sorted(path for path in CUDA.rglob("*") if path.is_file())
COMMENT = re.compile(r"//.*?$|/\*.*?\*/", re.MULTILINE | re.DOTALL)
OPERATORS = set(_backends.TRITON_OPERATORS)
# What only nvcc knows, and the emulator has under another name -> where it may stand.
CUDA_ONLY = {
    r"\b__?asm(?:__)?\b": {DEVICE},
    r"__shared__": {DEVICE},
    r"<<<": {CUDA / "current_stream.h"},
    r"\bcuda_?(?:fp16|bf16|runtime|pipeline|cooperative_groups)": {CUDA / "current_stream.h"},
    r"\b(?:half|half2|__half|__nv_bfloat16)\b": set(),
    r"\b(?:__CUDACC__|__CUDA_ARCH__|__NVCC__)\b": set(),
    r"\bcuda(?:Malloc|Free|Memcpy|Memset|StreamSynchronize|DeviceSynchronize|Event)\w*": set(),
}


def code(path: Path) -> str:
    return COMMENT.sub("", path.read_text())


def test_there_are_files() -> None:
    assert {path.suffix for path in FILES} == {".cpp", ".cu", ".cuh", ".h"}
    assert all(path.parent == CUDA for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_emulator_is_asked_for_in_two_places(path: Path) -> None:
    found = [line for line in path.read_text().splitlines() if "EMULATOR" in line]
    wanted = ["#ifdef ERASE_KERNELS_EMULATOR"] if path in (DEVICE, HOST) else []
    assert found == wanted
    conditions = re.findall(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*", code(path), re.MULTILINE)
    assert len(conditions) == len(wanted), conditions


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_the_emulator_lacks_stands_in_few_places(path: Path) -> None:
    for pattern, places in CUDA_ONLY.items():
        found = re.findall(pattern, code(path))
        assert path in places or not found, (pattern, found)


def test_cmake_compiles_what_is_there() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    match = re.search(r"set\(CUDA_SOURCES\s+([^)]*)\)", text)
    assert match is not None
    there = sorted(f"csrc/cuda/{path.name}" for path in FILES if path.suffix in (".cu", ".cpp"))
    assert match[1].split() == there


def test_the_emulator_compiles_all_but_the_registration() -> None:
    emulated = {path.name for path in sources() if path.parent == CUDA}
    there = {path.name for path in FILES if path.suffix in (".cu", ".cpp")}
    assert there - emulated == {"registration.cpp"}


def test_status_bits_are_those_of_python() -> None:
    found = re.findall(r"kStatus(\w+) = (\d+)", (CUDA / "status.h").read_text())
    names = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper(): int(bit) for name, bit in found}
    assert names == {bit.name: bit.value for bit in Status}


def test_every_operator_is_declared_and_registered() -> None:
    text = code(ROOT / "csrc" / "operators.h")
    registered = re.findall(r'm\.impl\("(\w+)_" suffix,\s*\\?\s*TORCH_BOX\(&\S+::(\w+)##', text)
    assert {name for name, _ in registered} == OPERATORS
    assert all(function == f"{name}_" for name, function in registered)
    assert set(re.findall(r"\b(\w+)_##device\(", text)) == OPERATORS
    for device, path in (
        ("cpu", ROOT / "csrc" / "registration.cpp"),
        ("cuda", CUDA / "registration.cpp"),
    ):
        assert f'ERASE_KERNELS_REGISTER(m, {device}, "native")' in path.read_text()


def test_every_operator_has_a_kernel_and_a_launcher() -> None:
    """<operator>.cu or, where several share one, a module of the Triton kernels' name."""
    launchers = {path.stem for path in FILES if path.suffix == ".cu"}
    assert launchers == set(_backends.TRITON_OPERATORS.values())
    for operator, module in _backends.TRITON_OPERATORS.items():
        assert re.search(rf"\b{operator}_cuda\(", (CUDA / f"{module}.cu").read_text()), operator


def test_kernels_have_no_torch_and_launch_nothing() -> None:
    for path in FILES:
        if path.suffix == ".cuh":
            included = re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())
            assert not [name for name in included if "torch" in name or "launch" in name], path.name
