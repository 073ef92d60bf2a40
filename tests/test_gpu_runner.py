"""How `make gpu-check` goes from step to step: the library, what runs beside, what may be absent.

No GPU and no compute-sanitizer: steps are scripts, and what the tools print is recorded text.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest
import torch

from erase_kernels._backends import TRITON_OPERATORS
from erase_kernels._source_hash import MARKER, source_hash
from tests.device.subjects import SUBJECTS
from tests.test_gpu_check import facts, shell
from tools import first_call, gpu_check, gpu_runner, native_library, sanitize, sanitizer_cases
from tools.gpu_steps import DECLINED, FAILED, NOT_RUN, PASSED, Result, Step

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def a_library(path: Path, capabilities: str, sources: str = "") -> Path:
    built = sources or source_hash(ROOT, cuda=True)
    path.write_bytes(b"\x7fELF\0" + MARKER + built.encode() + b"\0" + capabilities.encode() + b"\0")
    return path


def test_what_a_library_is_built_for(tmp_path: Path) -> None:
    path = tmp_path / "_C.abi3.so"
    assert native_library.why_not_current("9.0", path) == "_C.abi3.so does not exist"
    a_library(path, "13.0: 8.0 9.0")
    assert native_library.built_with(path) == ("13.0", ["8.0", "9.0"])
    for capability in ("8.0", "8.6", "9.0"):
        assert native_library.why_not_current(capability, path) == ""
    for capability in ("7.5", "10.0"):
        reason = f"_C.abi3.so has machine code for 8.0, 9.0, not {capability}"
        assert native_library.why_not_current(capability, path) == reason
    a_library(path, "13.0: 9.0", "f" * 64)
    assert "present sources" in native_library.why_not_current("9.0", path)
    path.write_bytes(MARKER + source_hash(ROOT, cuda=False).encode() + b"\0")  # no CUDA kernels
    assert "present sources" in native_library.why_not_current("9.0", path)
    assert native_library.built_with(path) == ("", [])


def native(script: str) -> Step:
    environment = {"ARCHITECTURES": "{architecture}-real"}
    return Step("native", "a script", ("/bin/sh", "-c", script), 60.0, environment)


def operators() -> Step:
    script, environment = "echo with $DEMANDED", {"DEMANDED": "{backends}"}
    return Step("operators", "a script", ("/bin/sh", "-c", script), 60.0, environment)


@pytest.mark.parametrize("made", ["before", "now", "wrong", "never"])
def test_tests_must_find_the_library_that_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    library = tmp_path / "_C.abi3.so"
    for module in (native_library, gpu_runner):
        monkeypatch.setattr(module, "LIBRARY", library)
    ready = a_library(tmp_path / "ready", "13.0: 9.0")
    if made == "before":
        a_library(library, "13.0: 8.0 9.0")
    script = {
        "before": "exit 1",
        "now": f"echo $ARCHITECTURES; cp {ready} {library}",
        "wrong": "true",
        "never": "exit 1",
    }[made]
    steps = [facts("X"), native(script), shell("memcheck", "echo watched"), operators()]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None)
    build, sanitizer, tests = results[1:]
    if made == "before":
        assert (build.status, build.exit) == (PASSED, None)
        assert build.note == "up to date: nvcc 13.0, compute capability 8.0, 9.0"
    elif made == "now":
        assert (build.status, build.tail) == (PASSED, "90-real")
    else:
        assert build.status == FAILED
        assert build.note == ("_C.abi3.so does not exist" if made == "wrong" else "")
        assert (sanitizer.status, sanitizer.note) == (NOT_RUN, "the native library was not built")
    good = made in ("before", "now")
    assert tests.tail == ("with native,triton" if good else "with triton")
    assert gpu_runner.passed(results) == good


def test_without_a_build_step_the_library_that_is_there_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "_C.abi3.so"
    monkeypatch.setattr(native_library, "LIBRARY", library)
    steps = [facts("X"), operators()]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None)
    assert results[1].tail == "with triton"
    a_library(library, "13.0: 9.0")
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None)
    assert results[1].tail == "with native,triton"


def test_steps_beside_others_end_before_a_quiet_one(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    wait = f"for i in $(seq 200); do [ -e {mark} ] && exit 0; sleep 0.05; done; exit 1"
    beside = Step("beside", "waits", ("/bin/sh", "-c", wait), 60.0, beside=True)
    slow = Step(
        "slow", "sleeps", ("/bin/sh", "-c", f"sleep 0.6; touch {mark}.2"), 60.0, beside=True
    )
    quiet = Step("quiet", "looks", ("/bin/sh", "-c", f"test -e {mark}.2"), 60.0, quiet=True)
    steps = [facts("X"), beside, slow, shell("maker", f"touch {mark}"), quiet]
    seen: list[int] = []
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: seen.append(len(done)))
    assert [(r.step.name, r.status) for r in results[1:]] == [
        ("beside", PASSED),
        ("slow", PASSED),
        ("maker", PASSED),
        ("quiet", PASSED),
    ]
    assert seen[0] == 1
    assert seen[-1] == len(steps)
    last = gpu_runner.run_all(steps[:3], tmp_path / "logs", lambda done: seen.append(len(done)))
    assert [r.status for r in last] == [PASSED] * 3
    assert seen[-1] == 3


def test_time_is_kept_for_later_steps(tmp_path: Path) -> None:
    kept = Step("kept", "a script", ("/bin/echo", "{seconds}"), 60.0, reserve_s=8.0)
    start = time.monotonic()
    steps = [facts("X"), shell("slow", "sleep 60"), kept]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None, total_s=11.0)
    assert [r.status for r in results] == [PASSED, "timed out", PASSED]
    assert time.monotonic() - start < 9
    assert 4 <= int(results[2].tail) <= 7


def test_what_the_machine_lacks_is_no_failure(tmp_path: Path) -> None:
    steps = [
        facts("X"),
        shell("lacking", f"echo more; echo 'NOT RUN: no tool here'; exit {DECLINED}"),
        shell("good", "echo 'NOTE: first'; echo 'NOTE: 0 errors, 34 calls'"),
    ]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None)
    assert [(r.status, r.note) for r in results[1:]] == [
        (NOT_RUN, "no tool here"),
        (PASSED, "0 errors, 34 calls"),
    ]
    assert gpu_runner.passed(results)
    assert "lacking      not run" in gpu_check.summary(results, tmp_path / "logs")
    assert not gpu_runner.passed([*results, Result(steps[1], NOT_RUN, "no time was left")])


CLEAN = f"{sanitizer_cases.BEGUN}\n  x\n{sanitizer_cases.DONE}, 34 calls\n"


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        (f"{CLEAN}========= ERROR SUMMARY: 0 errors\n", 0, (0, "0 errors, 0 warnings, 34 calls")),
        (
            f"{CLEAN}========= RACECHECK SUMMARY: 3 hazards displayed (0 errors, 3 warnings)\n",
            0,
            (0, "0 errors, 3 warnings, 34 calls"),
        ),
        (
            f"{CLEAN}========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
            86,
            (1, "1 errors, 0 warnings"),
        ),
        (f"{CLEAN}========= ERROR SUMMARY: 12 errors\n", 86, (1, "12 errors, 0 warnings")),
        (f"{CLEAN}", 0, (1, "compute-sanitizer printed no summary")),
        (
            f"{sanitizer_cases.BEGUN}\n========= ERROR SUMMARY: 0 errors\n",
            139,
            (1, "the cases did not come to their end: exit status 139"),
        ),
        ("ModuleNotFoundError\n", 1, (1, "the cases did not come to their end: exit status 1")),
        (
            "========= Error: Device not supported. Please refer to the manual\n"
            "RuntimeError: CUDA error: unknown error\n========= ERROR SUMMARY: 1 error\n",
            86,
            (77, "compute-sanitizer: Error: Device not supported. Please refer to the manual"),
        ),
        (
            f"========= Error: Device not supported\n{CLEAN}========= ERROR SUMMARY: 0 errors\n",
            0,
            (77, "compute-sanitizer: Error: Device not supported"),
        ),
    ],
)
def test_a_sanitizer_is_judged(output: str, code: int, expected: tuple[int, str]) -> None:
    assert sanitize.judge(output, code) == expected


def test_a_sanitizer_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --help ]; then echo "  --check-api-memory-access arg (=yes)"; exit; fi\n'
        'echo "called: $* $PYTORCH_NO_CUDA_MEMORY_CACHING"\n'
        f"printf '{sanitizer_cases.BEGUN}\\n{sanitizer_cases.DONE}, 3 calls\\n'\n"
        "echo '========= ERROR SUMMARY: 0 errors'\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "argv", ["sanitize", "initcheck"])
    assert sanitize.main() == 0
    said = capsys.readouterr().out
    assert "--tool initcheck --error-exitcode 86" in said
    assert "--check-api-memory-access no" in said
    assert said.splitlines()[-1] == "NOTE: 0 errors, 0 warnings, 3 calls"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "absent"))
    assert sanitize.main() == DECLINED
    assert capsys.readouterr().out == "NOT RUN: no compute-sanitizer was found\n"


def test_the_cases_run_every_operator() -> None:
    """On the CPU: the native kernels of the CPU run instead."""
    assert {build(CPU).ran for build in SUBJECTS.values()} == set(TRITON_OPERATORS)
    assert sanitizer_cases.run_cases(CPU) == 2 * len(SUBJECTS)
    with pytest.raises(AssertionError, match="ran"):
        sanitizer_cases.run_cases(CPU, backend="reference")


def test_first_calls_are_measured_in_fresh_processes() -> None:
    assert set(first_call.CALLED) == set(TRITON_OPERATORS)
    for operator, name in first_call.CALLED.items():
        assert SUBJECTS[name](CPU).ran == operator
    ours = os.getpid()
    assert first_call.in_a_fork(lambda: {"pid": os.getpid()})["pid"] != ours
    assert "ValueError" in first_call.in_a_fork(lambda: {"x": int("x")})["error"]
    assert first_call.in_a_fork(lambda: os._exit(3)) == {"error": "the process ended with 3"}
    found = first_call.measure("segmented_topk", "native", CPU)
    assert found["first_ms"] > 0
    assert not found["compiled"]


def test_first_calls_are_shown() -> None:
    found = {
        "a": {"native": {"first_ms": 12.5}, "triton": {"first_ms": 80.0, "compiling_ms": 900.0}},
        "b": {"native": {"first_ms": 61.0}, "triton": {"error": "RuntimeError: no"}},
    }
    assert first_call.verdict(found) == "native at most 61.0 ms (b); 50 ms wanted: missed"
    del found["b"]
    assert first_call.verdict(found) == "native at most 12.5 ms (a); 50 ms wanted: met"
    assert gpu_check.first_calls(found)[-1] == "| a | 12.5 | 80.0 (900.0 when compiling) |"
