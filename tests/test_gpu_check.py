"""The runner behind `make gpu-check`, with steps that pass, fail, hang and leave processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bench import report
from tools import flash_attention, gpu_check, gpu_plan, gpu_runner, gpu_steps
from tools.gpu_steps import FAILED, NOT_RUN, PASSED, TIMED_OUT, Result, Step

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-o",
    "addopts=",
)


def shell(name: str, script: str, limit_s: float = 60.0) -> Step:
    return Step(name, "a script", ("/bin/sh", "-c", script), limit_s)


def facts(device: str | None) -> Step:
    known = {"device": device, "torch": "2", "capability": "9.0"}
    return shell("facts", f"echo '{json.dumps(known)}'")


def test_goes_on_after_a_failed_step(tmp_path: Path) -> None:
    steps = [
        facts("NVIDIA Test"),
        shell("bad", "echo what went wrong; exit 3"),
        shell("slow", "echo begun; sleep 60", limit_s=2.0),
        Step("absent", "no such program", ("/no/such/program",), 5.0),
        shell("good", "echo fine"),
    ]
    seen: list[list[str]] = []
    results = gpu_runner.run_all(
        steps, tmp_path / "logs", lambda done: seen.append([r.status for r in done])
    )
    assert [r.status for r in results] == [PASSED, FAILED, TIMED_OUT, FAILED, PASSED]
    assert [r.exit for r in results] == [0, 3, None, 127, 0]
    assert seen[0] == [PASSED]
    assert len(seen) == len(steps)
    assert results[2].tail == "begun"
    assert results[2].seconds < 30
    assert not gpu_runner.passed(results)
    assert gpu_runner.passed([results[0], results[4]])
    text = gpu_check.summary(results, tmp_path / "logs")
    assert "what went wrong" in text
    assert "slow         timed out" in text
    assert "more than 2 s" in text
    assert "/no/such/program" in text
    last = text.splitlines()[-1]
    assert last.startswith("gpu-check FAILED")


def test_the_limit_of_all_steps_holds(tmp_path: Path) -> None:
    steps = [facts("X"), shell("slow", "sleep 60"), shell("late", "true")]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None, total_s=3.0)
    assert [r.status for r in results] == [PASSED, TIMED_OUT, NOT_RUN]
    assert results[2].note == "no time was left"
    assert not gpu_runner.passed(results[::2])


def test_a_program_is_told_the_time_there_is(tmp_path: Path) -> None:
    step = Step("x", "a script", ("/bin/echo", "{seconds}"), 40.0)
    assert gpu_steps.run_step(step, tmp_path, ROOT, 60.0).tail == "30"
    result = gpu_steps.run_step(step, tmp_path, ROOT, 20.0)
    assert result.tail == "15"
    assert result.facts()["command"] == ["/bin/echo", "15"]


def test_no_process_outlives_its_step(tmp_path: Path) -> None:
    for name, end in (("ended", ""), ("hung", "; sleep 60")):
        script = f"sleep 60 & echo $!{end}"
        result = gpu_steps.run_step(shell(name, script, 2.0), tmp_path, ROOT, 60.0)
        pid = int(result.tail)
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(pid), name


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_without_a_gpu_nothing_pretends(tmp_path: Path) -> None:
    steps = [facts(None), shell("operators", "echo must not run")]
    results = gpu_runner.run_all(steps, tmp_path / "logs", lambda done: None)
    assert [r.status for r in results] == [PASSED, NOT_RUN]
    assert results[1].note == "no CUDA device was found"
    assert not gpu_runner.passed(results)


def test_tests_are_counted_and_failures_named(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False, 'the reason'\n"
        "def test_other(): pytest.skip('one device only')\n"
    )
    step = Step("x", "tests", (*PYTEST, "-ra", str(tmp_path)), 60.0, tests=True)
    result = gpu_steps.run_step(step, tmp_path, tmp_path, 60.0)
    assert result.status == FAILED
    assert result.counts == {"failed": 1, "passed": 1, "skipped": 1}
    named = gpu_check.failures(result, (tmp_path / "x.log").read_text())
    assert len(named) == 1
    assert "test_bad" in named[0]
    only_skipped = Step("y", "tests", (*step.command, "-k", "other"), 60.0, tests=True)
    result = gpu_steps.run_step(only_skipped, tmp_path, tmp_path, 60.0)
    assert (result.status, result.note) == (FAILED, "no test passed")


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("3 passed in 0.05s", {"passed": 3}),
        ("====== 1 failed, 3 passed, 2 skipped in 62.05s (0:01:02) ======", None),
        ("12 passed, 1 warning in 1.2s", {"passed": 12, "warning": 1}),
        ("no tests ran in 0.01s", {}),
    ],
)
def test_counts_of_a_last_line(line: str, counts: dict[str, int] | None) -> None:
    expected = {"failed": 1, "passed": 3, "skipped": 2} if counts is None else counts
    assert gpu_steps.count_tests(f"tests/test_x.py ...\n\n{line}\n") == expected


def test_the_summary_is_short(tmp_path: Path) -> None:
    """A remote machine sends back the last 12 000 characters only."""
    results = [Result(facts("X"), PASSED)]
    for name in gpu_plan.NAMES[1:]:
        log = "".join(f"FAILED tests/device/test_x.py::test_{i} - {'x' * 400}\n" for i in range(99))
        (tmp_path / f"{name}.log").write_text(log)
        step = Step(name, "tests", ("true",), 1.0, tests=True)
        results.append(Result(step, FAILED, exit=1, counts={"failed": 99}, tail=log[-9000:]))
    text = gpu_check.summary(results, tmp_path)
    assert re.search(r"and 9\d more", text)
    assert len(text) < 11_000
    alone = gpu_check.summary(results[:2], tmp_path)
    assert "and 84 more" in alone
    assert text.splitlines()[-1].startswith("gpu-check FAILED")


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    logs, out = tmp_path / "logs", tmp_path / "out"
    results = gpu_runner.run_all(
        [facts("NVIDIA Test"), shell("bad", "echo why; exit 1")],
        logs,
        lambda done: gpu_check.write(done, logs, out, "abc123"),
    )
    content = json.loads((out / "gpu-check.json").read_text())
    assert content["facts"] == {"device": "NVIDIA Test", "torch": "2", "capability": "9.0"}
    assert content["revision"] == "abc123"
    assert content["passed"] is False
    assert [step["name"] for step in content["steps"]] == ["facts", "bad"]
    bad = content["steps"][1]
    assert (bad["status"], bad["exit"], bad["tail"]) == (FAILED, 1, "why")
    assert bad["command"] == list(results[1].step.command)
    table = (out / "gpu-check.md").read_text()
    assert "| device | NVIDIA Test |" in table
    assert "| bad | failed |" in table
    assert "===== bad\nwhy" in (out / "gpu-check.log").read_text()
    assert not list(out.glob("*.new"))


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    gpu_steps.write_atomically(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        gpu_steps.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_results_are_copied_flat(tmp_path: Path) -> None:
    """Together with the runner's own, at most eight files."""
    measured, out = tmp_path / "bench", tmp_path / "out"
    out.mkdir()
    gpu_check.copy_results(measured, out)  # benchmarks did not run
    assert not list(out.iterdir())
    (measured / "nvidia-test").mkdir(parents=True)
    for name in ("a.json", "a.md"):
        (measured / "nvidia-test" / name).write_text(name)
    gpu_check.copy_results(measured, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "a.json": "a.json",
        "a.md": "a.md",
    }
    for path in out.iterdir():
        path.unlink()
    for number in range(6):
        (measured / f"{number}.json").write_text("x")
    gpu_check.copy_results(measured, out)
    (bundle,) = out.iterdir()
    with tarfile.open(bundle) as archive:
        assert len(archive.getnames()) == 8
        assert "nvidia-test/a.md" in archive.getnames()


def test_dry_run_names_every_command() -> None:
    command = [sys.executable, "-m", "tools.gpu_check", "--dry-run", "--revision", "abc123"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(lines) == list(gpu_plan.NAMES)
    assert "build_ext --inplace" in lines["native"]
    assert "ERASE_KERNELS_CUDA_ARCHITECTURES={architecture}-real" in lines["native"]
    for name in gpu_plan.SANITIZERS:
        assert lines[name].endswith(f"-m tools.sanitize {name}")
    stress = gpu_plan.STRESS
    for name, folder in (
        ("operators", "tests/device"),
        ("stress", stress),
        ("integration", "tests/hf"),
    ):
        assert "ERASE_KERNELS_TEST_DEVICE=cuda" in lines[name]
        assert lines[name].endswith(folder)
        assert re.search(r"-n \d+ (?:--ignore=\S+ )?tests/", lines[name])
        assert ("ERASE_KERNELS_TEST_BACKENDS={backends}" in lines[name]) == (name != "integration")
    assert f"--ignore={stress} " in lines["operators"]
    assert "ERASE_KERNELS_TEST_DEVICE=cuda" in lines["flash"]
    assert lines["flash"].endswith("-m tools.flash_attention")
    assert "-m bench --device cuda --budget" in lines["benchmarks"]
    assert "abc123" in lines["benchmarks"]
    quick = subprocess.run([*command, "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert [line.split(" ")[0] for line in quick.stdout.splitlines()] == list(gpu_plan.QUICK)
    only = subprocess.run([*command, "--only", "native"], cwd=ROOT, capture_output=True, text=True)
    assert [line.split(" ")[0] for line in only.stdout.splitlines()] == ["facts", "native"]


def test_flash_attention_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Declined with the reason, or pytest's own exit status."""
    assert all((ROOT / path).is_file() for path in flash_attention.TESTS)
    monkeypatch.setattr(flash_attention, "PACKAGES", ("no-such-package",))
    assert flash_attention.main() == gpu_steps.DECLINED
    assert capfd.readouterr().out == "NOT RUN: flash-attn is not installed\n"
    monkeypatch.setattr(flash_attention, "PACKAGES", ("no-such-package", "pytest"))
    monkeypatch.setattr(flash_attention, "TESTS", ("tests/none.py",))
    assert flash_attention.main() not in (0, gpu_steps.DECLINED)
    assert f"with pytest {pytest.__version__}" in capfd.readouterr().out


def test_the_folder_is_the_benchmarks_folder() -> None:
    for name in ("NVIDIA H200", "NVIDIA GeForce RTX 5090 (Laptop)"):
        assert gpu_check.slug(name) == report.directory_name(name)
