"""Training goes on where it stopped, to the same weights, and refuses another run's checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.accuracy import curriculum, curve, train
from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.curriculum import Batches, Kind, Phase, joint_start
from erase.demo_assets import load_tokenizer

CPU = torch.device("cpu")
STEPS = 6


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of two images, the first two of the encoder alone."""
    alone, asked = Kind((4, 4), 2, (1, 2), 0), Kind((4, 4), 2, (1, 2), 2)
    phases = (
        Phase(1 / 3, ((1.0, alone),), ("flat",), 1.0),
        Phase(2 / 3, ((1.0, asked),), BACKGROUNDS, 0.3),
    )
    monkeypatch.setattr(curriculum, "PHASES", phases)
    monkeypatch.setattr(train, "REPORT_EVERY", 1)
    monkeypatch.setattr(train, "TEST_EVERY", 2)
    monkeypatch.setattr(train, "TESTED", {(8, 8): 2})


def finished(checkpoint: Path) -> train.Run:
    run = train.start(0, STEPS, CPU)
    if checkpoint.exists():
        run.load(checkpoint)
    train.train(run, CPU, checkpoint, compiled=False)
    return run


def test_resumed_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finished(tmp_path / "whole.pt")

    class Stop(Exception):
        pass

    step = train.Trainer.step

    def interrupted(self: Any, batch: Any) -> None:
        if self.run.step == 3:  # one step after the checkpoint at step 2
            raise Stop
        step(self, batch)

    monkeypatch.setattr(train.Trainer, "step", interrupted)
    with pytest.raises(Stop):
        finished(tmp_path / "part.pt")
    monkeypatch.setattr(train.Trainer, "step", step)
    state = torch.load(tmp_path / "part.pt", weights_only=True)
    assert state["step"] == 2
    resumed = finished(tmp_path / "part.pt")
    assert resumed.step == STEPS
    for name, weight in whole.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
    numbers = [[p["step"] for p in run.points] for run in (whole, resumed)]
    assert numbers[0] == numbers[1] == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("*.part"))


def test_training_changes_what_it_should() -> None:
    """The encoder alone first; then everything, with gradients from the answers."""
    run = train.start(0, STEPS, CPU)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    trainer = train.Trainer(run, CPU, compiled=False)

    def moved() -> set[str]:
        state = run.model.state_dict()
        return {k.split(".")[1] for k in state if not state[k].equal(before[k])}

    trainer.step(Batches(0, STEPS)[0])
    assert moved() == {"visual"}
    assert joint_start(STEPS) == 2
    run.step = 2
    trainer.step(Batches(0, STEPS)[2])
    assert moved() >= {"visual", "language_model"}


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    train.start(0, STEPS, CPU).save(tmp_path / "run.pt")
    for seed, steps, name in ((1, STEPS, "seed"), (0, STEPS + 1, "steps")):
        with pytest.raises(ValueError, match=f"{name}: .*expected"):
            train.start(seed, steps, CPU).load(tmp_path / "run.pt")


def test_exact_match_counts_every_digit() -> None:
    """A model that always says the first answer is right exactly there."""
    run = train.start(0, STEPS, CPU)
    trainer = train.Trainer(run, CPU, compiled=False)
    samples = [curriculum.draw(np.random.default_rng(i), (4, 4), "flat", 2, ()) for i in range(5)]
    first = samples[0]
    wanted = load_tokenizer()(first.answer + "<|im_end|>")["input_ids"]

    def says_the_first(
        model: Any, ids: torch.Tensor, visual: Any, grid: Any, predicting: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.zeros(len(ids), len(predicting), 768)
        logits[:, range(len(wanted)), wanted] = 1.0
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "answer_logits", says_the_first)
        got = trainer.exact_match(samples, batch=2)
    assert got == sum(s.answer == first.answer for s in samples) / 5


def test_rate() -> None:
    steps = 9000
    joint = joint_start(steps)
    assert train.rate(0, steps) == pytest.approx(train.PEAK_RATE / train.WARM_UP)
    assert train.rate(joint - 1, steps) == train.PEAK_RATE
    assert train.rate(joint, steps) == pytest.approx(train.PEAK_RATE / train.WARM_UP)
    last = train.rate(steps - 1, steps)
    assert last == pytest.approx(train.FINAL_RATE * train.PEAK_RATE, rel=0.01)
    rates = [train.rate(s, steps) for s in range(joint + train.WARM_UP, steps)]
    assert rates == sorted(rates, reverse=True)


def test_curve(tmp_path: Path) -> None:
    points: list[dict[str, float]] = [
        {"step": 1, "seconds": 2.0, "glyph_loss": 3.0},
        {"step": 2, "seconds": 4.0, "answer_loss": 0.5, "exact_match_64": 0.25},
    ]
    curve.write(points, tmp_path)
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[1]["exact_match_64"] == "0.25"
    assert rows[0]["answer_loss"] == ""
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.csv", "curve.png"]
