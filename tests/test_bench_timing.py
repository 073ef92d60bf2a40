"""What times calls on a GPU, and a whole run of it, on a make-believe one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import device, device_rows, timing
from bench.device_report import load_results
from bench.device_rows import DeviceRow, Target
from bench.problem import COMPILED
from bench.rows import PLAIN, PUBLISHED
from bench.timing import CALLS, GRAPH, CudaTimer, HostTimer
from erase_kernels.testing import Case
from tests.fake_gpu import FakeGpu
from tests.test_bench_device import CPU, SMALL


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_calls_are_captured_on_operands_in_turn(gpu: FakeGpu) -> None:
    seen: list[tuple[bool, int]] = []
    timer = CudaTimer(CPU)
    result = timing.measure(timer, lambda i: seen.append((gpu.capturing, i)), [0, 1, 2], 0.01)
    captured = [i for capturing, i in seen if capturing]
    assert captured == [i % 3 for i in range(timing.MOST_CALLS)]
    assert (result.how, result.calls, gpu.captures) == (GRAPH, timing.MOST_CALLS, 1)
    assert gpu.replays == 2 + result.rounds
    assert timing.LEAST_ROUNDS <= result.rounds <= timing.MOST_ROUNDS
    assert result.q1 <= result.median <= result.q3
    assert result.median > 1e-4 / timing.MOST_CALLS


def test_what_waits_is_timed_as_it_comes(gpu: FakeGpu) -> None:
    timer = CudaTimer(CPU)
    result = timing.measure(timer, gpu.waiting, [0], 0.01)
    assert (result.how, gpu.captures, gpu.mode) == (CALLS, 0, "default")
    with pytest.raises(RuntimeError, match="another"):
        timer.waits(lambda: (_ for _ in ()).throw(RuntimeError("another")))
    assert gpu.mode == "default"
    assert timer.peak_extra(lambda: None) == 4000


def options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    chosen = {"only": "", "quick": False, "no_write": False, "out": str(tmp_path)}
    return argparse.Namespace(**chosen | {"revision": "abc", "budget": 60.0} | changes)


def test_the_whole_run(
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the options to the files: a row that works, one whose shape does not."""
    operator, sizes, dtype, variant = SMALL["rows"]
    bad = Case(operator, "bad", {}, "")
    monkeypatch.setattr(device_rows, "cases", lambda _: [Case(operator, "s", sizes, ""), bad])
    rows = [
        DeviceRow(operator, "s", dtype, variant, Target(launches=1), headline=True),
        DeviceRow(operator, "bad", dtype),
    ]
    monkeypatch.setattr(device, "all_rows", lambda: rows)
    compiled: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled.append(how) or f)
    monkeypatch.setattr(device, "count_launches", lambda call: len(call()))
    monkeypatch.setattr(device, "release", lambda _: None)
    session = device.Session(CudaTimer(CPU), CPU, ("native",), 4e12, 8e14, round_budget=0.001)
    monkeypatch.setattr(device, "open_session", lambda *_: session)
    assert device.main(options(tmp_path)) == 1  # one of ours failed
    out = capsys.readouterr().out
    assert "compact_rows bad bfloat16: native: KeyError: 'keys'" in out
    facts, (good, failed) = load_results(tmp_path / "nvidia-make-believe" / "operators.json")
    assert good.seconds.keys() == {"native", PUBLISHED, PLAIN, COMPILED}
    assert compiled == [{"dynamic": False, "fullgraph": True}]
    assert (good.launches, good.memory["native"]) == ({"native": 3}, 4000)
    assert "3 launches, wanted 1" in good.missed("native")
    assert failed.errors == {"native": "KeyError: 'keys'"}
    expected = {"revision": "abc", "device": "NVIDIA MAKE-BELIEVE", "compute capability": "9.0"}
    assert expected.items() <= facts.items()
    assert facts["rows"].startswith("2 of 2")
    assert {"torch", "triton", "driver", "cuda", "command", "copy bandwidth"} <= facts.keys()
    assert device.main(options(tmp_path, only="nothing")) == 2


def test_out_of_time_leaves_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, sizes, dtype, variant = SMALL["rows"]
    monkeypatch.setattr(device_rows, "cases", lambda _: [Case(operator, "s", sizes, "")])
    monkeypatch.setattr(device, "release", lambda _: None)
    monkeypatch.setattr(HostTimer, "peak_extra", lambda *_: 1)
    row = DeviceRow(operator, "s", dtype, variant, headline=True)
    session = device.Session(HostTimer(), CPU, ("native",), 1e9, 1e9, until=-1, compile_until=-1)
    session.round_budget = 0.001
    (result,) = device.run_rows([row], session)
    assert result.seconds.keys() == {"native"}
    late = "skipped: out of time"
    not_compiled = "skipped: no time to compile it"
    assert result.errors == {PUBLISHED: late, PLAIN: late, COMPILED: not_compiled}


def test_headline_rows_come_first_and_ours_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of the first row run; of the others there is just time for ours, on every backend."""
    operator, sizes, dtype, variant = SMALL["rows"]
    shapes = [Case(operator, name, sizes, "") for name in ("a", "b", "c")]
    monkeypatch.setattr(device_rows, "cases", lambda _: shapes)
    monkeypatch.setattr(device, "release", lambda _: None)
    monkeypatch.setattr(HostTimer, "peak_extra", lambda *_: 1)
    rows = [DeviceRow(operator, name, dtype, variant, headline=name == "b") for name in "abc"]
    now = [0.0]
    backends = ("native", "reference")
    session = device.Session(HostTimer(), CPU, backends, 1e9, 1e9, compile_until=-1)
    session.round_budget, session.clock = 0.001, lambda: now[0]
    session.until = 2 * len(backends) * device.OURS_S + 0.5
    seen: list[str] = []

    def done(results: list[Any], last: Any) -> None:
        seen.append(last.row.split()[1])
        now[0] += 1.8

    results = device.run_rows(rows, session, done)
    assert seen == ["b", "a", "c"]
    assert [result.row.split()[1] for result in results] == ["a", "b", "c"]
    assert [PLAIN in result.seconds for result in results] == [False, True, False]
    assert all(set(backends) <= result.seconds.keys() for result in results)


def test_launches_are_not_made_up(gpu: FakeGpu) -> None:
    """Where no profiler sees a GPU there is no count."""
    assert timing.count_launches(lambda: torch.ones(3) + 1) is None


def test_ceilings() -> None:
    copy_rate, multiply_rate = timing.ceilings(HostTimer(), CPU, 1 << 20, 64)
    assert 1e8 < copy_rate < 1e13
    assert 1e7 < multiply_rate < 1e14
