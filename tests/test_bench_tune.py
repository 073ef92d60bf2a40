"""Tuning: what a file of bench/tuning means, what is tried, what wins, where it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import device, timing, tune
from bench.device_rows import make_problem
from bench.timing import HostTimer
from bench.tune import Outcome, Trial
from erase_kernels.testing import Case
from erase_kernels.triton_kernels import _launch
from tests.test_bench_device import CPU, SMALL

KERNEL = "compact_rows"
SHAPE_CLASS = "wide"


def test_cases_are_found() -> None:
    operator, case, _, variant = tune.resolve("patch_entropy page_16384 HWC")
    assert (operator, case.name, variant) == ("patch_entropy", "page_16384", "HWC")
    assert tune.resolve("patch_entropy_from_pixels photo_4096")[2] == torch.float32
    assert tune.resolve("patch_entropy_from_pixels photo_4096 bfloat16")[2] == torch.bfloat16
    assert tune.resolve("segmented_topk sixty_four_1024")[1].operator == "complexity_plan"
    assert tune.resolve("text_to_vision_scores page_16384_640")[1].name == "page_16384_64"
    assert tune.resolve("compact_kv_ late_16384", "compact_kv_paged")[3] == "paged"
    with pytest.raises(KeyError, match="no_such"):
        tune.resolve("no_such page_16384")


@pytest.mark.parametrize("path", sorted(tune.TUNING.glob("*.json")), ids=lambda path: path.stem)
def test_committed_grids_fit_the_configurations(path: Path) -> None:
    for shape_class, entry in json.loads(path.read_text()).items():
        committed = _launch.config(path.stem, shape_class, 90).arguments()
        assert entry["grid"].keys() <= committed.keys() | set(_launch.OPTIONS)
        assert len(tune.combinations(entry["grid"])) <= 32
        operator, case, *_ = tune.resolve(entry["case"], path.stem)
        assert entry["case"].split()[1] == case.name, "a case of another name would be taken"
        assert entry["case"].split()[0] == operator


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call per round, few rounds; ours is native, which no setting changes."""
    monkeypatch.setattr(timing, "ROUND_S", 1e-9)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(device, "MOST_COPIES", 2)
    monkeypatch.setattr(tune, "BACKEND", "native")
    operator, sizes, dtype, _ = SMALL["rows"]
    case = Case(operator, "s", sizes, "")
    monkeypatch.setattr(tune, "resolve", lambda *_: (operator, case, dtype, ""))


def committed() -> dict[str, int]:
    return dict(_launch.config(KERNEL, SHAPE_CLASS, 90).arguments())


@pytest.mark.usefixtures("short")
def test_every_combination_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, int]] = []

    def problem(*arguments: Any) -> Any:
        made = make_problem(*arguments)
        right = made.ours

        def ours(backend: str, operands: Any) -> Any:
            settings = dict(_launch.config(KERNEL, SHAPE_CLASS, 90).arguments())
            tried.append(settings)
            if settings["num_warps"] == 16:
                raise RuntimeError("out of resources")
            result = right(backend, operands)
            return [x + 1 for x in result] if settings["num_warps"] == 32 else result

        object.__setattr__(made, "ours", ours)
        return made

    monkeypatch.setattr(tune, "make_problem", problem)
    entry = {"case": "rows", "grid": {"num_warps": [committed()["num_warps"], 8, 16, 32]}}
    outcome = tune.tune_class(KERNEL, SHAPE_CLASS, entry, HostTimer(), CPU, 1e18)
    by_warps = {trial.settings["num_warps"]: trial for trial in outcome.trials}
    assert by_warps[8].seconds is not None
    assert by_warps[16].reason == "RuntimeError: out of resources"
    assert "elements differ" in by_warps[32].reason
    assert [trial.seconds is None for trial in outcome.trials] == [False, False, True, True]
    assert committed()["num_warps"] in {settings["num_warps"] for settings in tried}
    assert {settings["num_warps"] for settings in tried} >= {8, 16, 32}
    assert "2 failed" in outcome.line()


@pytest.mark.usefixtures("short")
def test_time_is_bounded() -> None:
    entry = {"case": "rows", "grid": {"num_warps": [64, 128]}}
    outcome = tune.tune_class(KERNEL, SHAPE_CLASS, entry, HostTimer(), CPU, -1.0)
    assert [trial.reason for trial in outcome.trials] == ["out of time"] * 2
    assert outcome.winner() is None


def test_winners_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "CONFIGS", tmp_path)
    old = {"wide": {"90": {"num_warps": 4, "BLOCK": 64}, "120": {"num_warps": 4, "BLOCK": 64}}}
    (tmp_path / "k.json").write_text(json.dumps(old))
    fast = Trial({"BLOCK": 128, "num_warps": 8}, 1e-5)
    same = Trial({"BLOCK": 64, "num_warps": 4}, 2e-5)
    outcomes = [Outcome("k", "wide", "op case", same.settings, 2e-5, [fast, same])]
    tune.save(tmp_path, outcomes, 90, "a GPU")
    arch, loaded = tune.load(tmp_path / "tuning.json")
    assert (arch, loaded) == (90, outcomes)
    tune.write_winners(loaded, arch)
    text = (tmp_path / "k.json").read_text()
    assert '    "90": {"num_warps": 8, "BLOCK": 128},\n' in text
    assert json.loads(text)["wide"]["120"] == old["wide"]["120"]
    close = Outcome("k", "wide", "op case", same.settings, 1.01e-5, [fast, same])
    assert close.winner() is None
    assert close.line() == "k | wide | op case | 10.1 us keep"
