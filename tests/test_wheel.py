"""The check of a release: each of its guards fails where it should."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from erase_kernels import _native
from tools import wheel_check, wheel_environments, wheel_files, wheel_library
from tools.wheel_library import STREAM, Library, Symbol
from tools.wheel_run import Failed, clean_environ

ROOT = Path(__file__).resolve().parent.parent
WEAK = Symbol(STREAM, "", defined=False, weak=True)
GOOD = Library(
    needed=("libtorch.so", "libtorch_cpu.so", "libstdc++.so.6", "libc.so.6"),
    run_path="",
    symbols=(
        WEAK,
        Symbol("torch_parallel_for", "", defined=False, weak=False),
        Symbol("memcpy", "GLIBC_2.14", defined=False, weak=False),
        Symbol("__gmon_start__", "", defined=False, weak=True),
        Symbol("erase_kernels_cpu_clone", "", defined=True, weak=False),
    ),
    slots={STREAM: 64},
)


def with_symbol(name: str, **properties: Any) -> Library:
    symbol = Symbol(name, "", **{"defined": False, "weak": False, **properties})
    return dataclasses.replace(GOOD, symbols=(*GOOD.symbols, symbol))


def test_the_library_of_this_environment_passes() -> None:
    """But for the CUDA kernels, where it has none."""
    found = wheel_library.faults(wheel_library.read_library(_native.LIBRARY))
    assert [fault for fault in found if STREAM not in fault] == []
    assert bool(found) != bool(_native.STATUS.cuda_build)


@pytest.mark.parametrize(
    ("library", "fault"),
    [
        (dataclasses.replace(GOOD, needed=("libtorch_cpu.so",)), "does not name libtorch.so"),
        *(
            (dataclasses.replace(GOOD, needed=(*GOOD.needed, name)), f"needs {name}")
            for name in (
                "libcudart.so.13",
                "libcuda.so.1",
                "libpython3.11.so.1.0",
                "libgomp.so.1",
                "libc10.so",
                "libtorch_cuda.so",
            )
        ),
        (dataclasses.replace(GOOD, run_path="/opt/torch/lib"), "search path /opt/torch/lib"),
        (with_symbol("_ZN3c105ErrorC1Ev"), "uses _ZN3c105ErrorC1Ev"),
        (with_symbol("PyTuple_Size"), "uses PyTuple_Size"),
        (with_symbol("torch_parallel_for", weak=True), "uses torch_parallel_for"),
        (with_symbol("torch_c10_cuda_check_msg"), "torch_c10_cuda_check_msg is not weak"),
        (with_symbol("cudaLaunchKernel", defined=True), "exports cudaLaunchKernel"),
        (dataclasses.replace(GOOD, symbols=GOOD.symbols[1:]), "does not ask torch for the current"),
    ],
)
def test_faults_of_a_library(library: Library, fault: str) -> None:
    assert wheel_library.faults(GOOD) == []
    assert any(fault in found for found in wheel_library.faults(library))


def test_tables_are_read_from_a_real_file(tmp_path: Path) -> None:
    source, library = tmp_path / "a.c", tmp_path / "a.so"
    source.write_text(
        f"extern void {STREAM}(void) __attribute__((weak));\n"
        "extern void strong_one(void);\n"
        f"void erase_kernels_a(void) {{ if ({STREAM}) {STREAM}(); strong_one(); }}\n"
    )
    options = ["-shared", "-fPIC", "-Wl,-rpath,/nowhere", "-o", str(library), str(source)]
    subprocess.run(["cc", *options], check=True)
    found = wheel_library.read_library(library)
    assert found.run_path == "/nowhere"
    assert found.weak == {STREAM}
    assert STREAM in found.slots
    assert {"exports erase_kernels_a"}.isdisjoint(wheel_library.faults(found))
    assert any("uses strong_one" in fault for fault in wheel_library.faults(found))


WHEEL_FILES = [
    "erase/py.typed",
    "erase_kernels/_C.abi3.so",
    "erase_kernels/__init__.py",
    "erase_kernels/py.typed",
    "erase_kernels/triton_kernels/configs/a.json",
    "erase_kernels-0.1.0.dist-info/METADATA",
]


@pytest.mark.parametrize(
    "extra",
    [
        "tests/test_x.py",
        "bench/rows.py",
        "erase_kernels.libs/libgomp-1.so",
        "erase_kernels/_native_missing.txt",
        "erase_kernels/_C.cpython-311-x86_64-linux-gnu.so",
        "erase_kernels/cuda/a.cuh",
    ],
)
def test_files_that_do_not_belong_into_a_wheel(extra: str) -> None:
    assert wheel_files.member_faults(WHEEL_FILES) == []
    assert any(extra in fault for fault in wheel_files.member_faults([*WHEEL_FILES, extra]))


@pytest.mark.parametrize("missing", WHEEL_FILES[:-1])
def test_files_that_a_wheel_must_have(missing: str) -> None:
    assert wheel_files.member_faults([name for name in WHEEL_FILES if name != missing])


def make_wheel(folder: Path, name: str, padding: int = 0) -> Path:
    """A wheel that holds this environment's library."""
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member in WHEEL_FILES:
            archive.writestr(member, b"")
        archive.writestr("erase/filling", b"x" * padding)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.write(_native.LIBRARY, "erase_kernels/_C.abi3.so")
    return path


def test_name_version_and_size_of_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("kernel_abi_check", reason="belongs to the extra `release`")
    name = "erase_kernels-0.1.0-cp310-abi3-manylinux_2_34_x86_64.whl"
    wheel = make_wheel(tmp_path, name, padding=wheel_files.MOST_BYTES)
    with pytest.raises(Failed, match="bytes are more than 5000000"):
        wheel_files.check_files(wheel, tmp_path / "erase_kernels-0.1.0.tar.gz", tmp_path)
    with pytest.raises(Failed, match="of different versions"):
        wheel_files.check_files(wheel, tmp_path / "erase_kernels-0.2.0.tar.gz", tmp_path)
    raw = wheel.rename(tmp_path / "erase_kernels-0.1.0-cp310-abi3-linux_x86_64.whl")
    with pytest.raises(Failed, match="is not named as"):
        wheel_files.check_files(raw, tmp_path / "erase_kernels-0.1.0.tar.gz", tmp_path)


def test_functions_that_a_platform_lacks() -> None:
    """kernel-abi-check reads the full symbol table: a stripped library would always pass."""
    pytest.importorskip("kernel_abi_check", reason="belongs to the extra `release`")
    assert wheel_library.abi_faults(_native.LIBRARY, "3.10", "manylinux_2_5")


# --- environments --------------------------------------------------------------------------------


def good_report(name: str, place: Path) -> dict[str, Any]:
    wanted = wheel_environments.ENVIRONMENTS[name]
    return {
        "file": str(place / "lib/python3.11/site-packages/erase_kernels/__init__.py"),
        "path": [str(place / "lib/python3.11/site-packages")],
        "cuda": wanted.cuda + "0" if wanted.cuda else "",
        "info": {"native": "available", "cpu": "native"},
        "refusal": f"backend native cannot run: {wanted.refusal}" if wanted.refusal else "",
        "registered": {"patch_entropy": ["CPU", "CUDA"]},
        "filled": {STREAM: bool(wanted.cuda)},
    }


@pytest.mark.parametrize("name", wheel_environments.ENVIRONMENTS)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"file": f"{ROOT}/erase_kernels/__init__.py"}, "erase_kernels came from"),
        ({"path": [str(ROOT)]}, "is importable"),
        ({"cuda": "11.8"}, "torch has CUDA 11.8"),
        ({"info": {"native": "does not load", "cpu": "reference"}}, "does not load"),
        ({"refusal": "something else"}, "CUDA tensors: something else"),
        ({"registered": {"patch_entropy": ["CPU"]}}, "patch_entropy_native has kernels for"),
        ({"registered": {}}, "there are no operators"),
        ({"filled": {}}, "no functions of torch's CUDA half"),
    ],
)
def test_faults_of_an_installed_wheel(name: str, change: dict[str, Any], fault: str) -> None:
    place, wanted = Path("/place"), wheel_environments.ENVIRONMENTS[name]
    report = good_report(name, place)
    assert wheel_environments.report_faults(report, wanted, place) == []
    found = wheel_environments.report_faults({**report, **change}, wanted, place)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize("name", wheel_environments.ENVIRONMENTS)
def test_the_loader_must_find_torchs_functions_with_cuda_only(name: str) -> None:
    place, wanted = Path("/place"), wheel_environments.ENVIRONMENTS[name]
    report = good_report(name, place)
    report["filled"] = {STREAM: not report["filled"][STREAM]}
    assert len(wheel_environments.report_faults(report, wanted, place)) == 1


def test_the_probe_reports_on_this_environment() -> None:
    slots = wheel_library.read_library(_native.LIBRARY).slots
    asked = {name: slots[name] for name in ("__cxa_finalize", "__gmon_start__")}
    done = subprocess.run(
        [sys.executable, str(wheel_environments.PROBE), *(f"{n}={o}" for n, o in asked.items())],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean_environ(PYTHONPATH=str(ROOT)),
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["filled"] == {"__cxa_finalize": True, "__gmon_start__": False}
    assert Path(report["file"]).is_relative_to(ROOT)
    assert all("CPU" in keys for keys in report["registered"].values())
    assert "patch_entropy" in report["registered"]


def test_a_torch_that_cannot_be_had_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = wheel_environments.Environment("0.0.0", "13.", "")
    monkeypatch.setattr(wheel_check, "ENVIRONMENTS", {"cuda": wanted})
    monkeypatch.setattr(wheel_check, "check_files", lambda *_: None)
    monkeypatch.setattr(wheel_check, "check_sdist", lambda *_: None)
    for name in ("a.whl", "a.tar.gz"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(wheel_environments, "ROOM_GB", 0)
    options = ["--dist", str(tmp_path), "--environments", str(tmp_path / "environments")]
    assert wheel_check.main(options) == 1
    output = capsys.readouterr().out
    assert "FAILED: torch cannot be installed: the check needs torch 0.0.0; --only" in output
    assert "passed" not in output
    assert wheel_check.main([*options, "--only", "files"]) == 0
    assert "passed, of files only" in capsys.readouterr().out


def test_too_little_room_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_environments, "ROOM_GB", 1e9)
    wanted = wheel_environments.ENVIRONMENTS["cuda"]
    with pytest.raises(Failed, match="GB are free in"):
        wheel_environments.make_environment("cuda", wanted, tmp_path)


def test_exactly_one_wheel_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel_check.main(["--dist", str(tmp_path)]) == 1
    assert "holds 0 files *.whl; `make wheel` makes one" in capsys.readouterr().out


def test_clean_environments_get_their_own_torch(tmp_path: Path) -> None:
    """The pins of the development environment would replace it."""
    names = {
        re.split(r"[=<>;]", line)[0]
        for line in wheel_environments.constraints(tmp_path).read_text().splitlines()
    }
    assert {"numpy", "transformers", "pytest"} <= names
    assert names.isdisjoint({"torch", "triton"})


def test_nothing_of_this_process_reaches_the_clean_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ERASE_KERNELS_CPU_CLONE", "baseline")
    kept = clean_environ(WANTED="1")
    assert kept["WANTED"] == "1"
    assert "PATH" in kept
    assert not [name for name in kept if name.startswith(("PYTHON", "ERASE_"))]


def test_the_operators_tests_are_there() -> None:
    """And need nothing but tests/ and the installed package."""
    for name in wheel_environments.TESTS:
        source = (ROOT / "tests" / f"{name}.py").read_text()
        imported = re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
        assert {"bench", "tools", "erase"}.isdisjoint(imported), name
        assert "ROOT" not in source, name
