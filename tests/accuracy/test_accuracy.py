"""The committed model still reads, pruning keeps what the page says, and the page is in step."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import erase
from bench.accuracy import calibrate, evaluate, page, runner
from bench.accuracy.__main__ import main
from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.methods import RATIOS, jobs
from bench.accuracy.model import WEIGHTS, load_model
from bench.accuracy.results import RESULTS, GridResults, Results, load, summarise
from bench.accuracy.runner import BATCH, Bed, Job, _encoded_once
from bench.accuracy.samples import held_out
from erase.methods import Random
from tests.accuracy.test_results import outcome

SAMPLES = {(8, 8): 120, (16, 16): 30}
LEAST_UNPRUNED = 0.9
MARGIN = 0.4
"""By which ERASE at a quarter of the tokens beats random pruning there."""
MOST_BYTES = 8 << 20
"""Of the committed weights."""


@pytest.fixture(scope="module")
def bed() -> Bed:
    torch.set_num_threads(1)  # as the workers of an evaluation
    return Bed(load_model())


@pytest.fixture(scope="module")
def measured(bed: Bed) -> dict[tuple[int, int], dict[str, Any]]:
    known = dict(jobs(calibrate.found()))
    names = ("unpruned", "random@0.25", "erase@0.25", "erase@0.15", "downsample@0.25")
    wanted = [(name, known[name]) for name in names]
    return {grid: bed.run("test", range(n), grid, wanted) for grid, n in SAMPLES.items()}


@pytest.mark.parametrize("grid", SAMPLES)
def test_unpruned_model_reads(measured: Any, grid: tuple[int, int]) -> None:
    assert measured[grid]["unpruned"].right.mean() >= LEAST_UNPRUNED


@pytest.mark.parametrize("grid", SAMPLES)
def test_erase_beats_random(measured: Any, grid: tuple[int, int]) -> None:
    ours, theirs = (measured[grid][f"{name}@0.25"].right.mean() for name in ("erase", "random"))
    assert ours >= theirs + MARGIN


@pytest.mark.parametrize("grid", SAMPLES)
def test_realised_ratios(measured: Any, grid: tuple[int, int]) -> None:
    """What the reports counted, against counts made here."""
    cells = grid[0] * grid[1]
    for ratio in (0.25, 0.15):
        outcome = measured[grid][f"erase@{ratio}"]
        share = int(cells * ratio) / cells
        assert np.allclose(outcome.kept, share)
        assert (outcome.prefill >= share - 1e-6).all()
        assert (outcome.entered >= outcome.prefill - 1e-6).all()
    assert np.allclose(measured[grid]["random@0.25"].prefill, int(cells * 0.25) / cells)
    smaller = measured[grid]["downsample@0.25"]
    assert (smaller.kept <= 0.25 + 1e-6).all()
    assert (measured[grid]["unpruned"].kept == 1).all()


@pytest.mark.parametrize("grid", SAMPLES)
def test_committed_answers(measured: Any, grid: tuple[int, int]) -> None:
    """The same samples give the committed answers, up to rounding on another machine."""
    stored = load().grids[f"{grid[0]}x{grid[1]}"]
    for name, got in measured[grid].items():
        assert np.mean(stored.of(name)[: len(got.right)] != got.right) <= 0.05, name


def test_committed_evaluation_is_complete() -> None:
    """Two thousand samples, every kind of background, every row; the stated accuracy is met."""
    results = load()
    expected = {name for name, _ in jobs(calibrate.found())}
    for grid in results.grids.values():
        assert len(grid) >= 2000
        assert set(grid.answers) == expected
    assert results.grids["8x8"].of("unpruned").mean() >= 0.97
    assert results.grids["16x16"].of("unpruned").mean() >= 0.95


def test_page_is_what_the_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(load())
    assert page.figure_digest() == page.digest(load())


def test_method_beside_the_weights() -> None:
    """The demo's method is the one that the stored calibration gives."""
    stored = erase.EraseConfig.from_json((WEIGHTS / calibrate.METHOD).read_text())
    assert stored == calibrate.found().default.method()


def test_weights_are_small_and_half_precision() -> None:
    assert sum(p.stat().st_size for p in WEIGHTS.iterdir()) < MOST_BYTES
    with safe_open(WEIGHTS / "model.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(name).dtype for name in list(file.keys())}
    assert kinds == {torch.float16}
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    for grid in load().grids.values():
        assert f"{100 * grid.of('unpruned').mean():.1f}" in card


def test_model_card_names_the_committed_run() -> None:
    """The curve beside the weights ends where the card says."""
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    last = (WEIGHTS / "curve.csv").read_text().splitlines()[-1].split(",")
    assert f"{last[0]} steps" in card
    assert f"{float(last[1]) / 60:.0f} minutes" in card
    assert (WEIGHTS / "curve.png").exists()


def test_encoder_runs_once_per_tensor(bed: Bed) -> None:
    """The saved encoder output is the stock one, and other pixels are encoded anew."""
    visual, calls = bed.model.model.visual, 0
    stock = visual.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return stock(*args, **kwargs)

    inputs = []
    for i in range(2):
        sample = held_out("calibration", i, (8, 8))
        inputs.append(bed.inputs([Image.fromarray(sample.image)], [sample]))
    with torch.no_grad():
        plain = [bed.model(**one).logits for one in inputs]
        visual.forward = counted
        try:
            with _encoded_once(visual):
                for _ in range(2):
                    for one, expected in zip(inputs, plain, strict=True):
                        assert bed.model(**one).logits.equal(expected)
        finally:
            vars(visual).pop("forward", None)
    assert calls == 2


def test_processes_give_the_same_answers(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of their own, batch by batch, against one run here; order and random seeds too."""
    monkeypatch.setattr(evaluate, "GRIDS", ((8, 8),))
    known = dict(jobs(calibrate.found()))
    wanted = [(name, known[name]) for name in ("stage1", "random@0.25")]
    results = evaluate.evaluate(WEIGHTS, 2 * BATCH, wanted, 2, {"device": "here"})
    expected = bed.run("test", range(2 * BATCH), (8, 8), wanted)
    assert results.facts == {"device": "here"}
    grid = results.grids["8x8"]
    for name, got in expected.items():
        assert np.array_equal(grid.of(name), got.right)
        assert grid.answers[name].means == summarise(got).means
    assert np.array_equal(grid.median, expected["stage1"].median)


def results_of(right: list[bool], kept: float = 0.25, job: str = "erase@0.25") -> Results:
    made = outcome(len(right), 0)
    arrays = {**vars(made), "right": np.array(right), "kept": np.full(len(right), kept)}
    answers = summarise(type(made)(**arrays))
    return Results({}, {"8x8": GridResults(made.median, {job: answers})})


COMMITTED = [True] * 540 + [False] * 60


@pytest.mark.parametrize(
    ("right", "kept", "named"),
    [
        ([True] * 30, 0.25, None),
        ([False] + [True] * 29, 0.25, "0.967, committed 1.000"),
        ([False] * 30, 0.25, "100.0% of the answers differ"),
        ([True] * 30, 0.3, "kept 0.300, committed 0.250"),
        ([True] * 535 + [False] * 65, 0.25, None),
        ([True] * 505 + [False] * 95, 0.25, "5.8% of the answers differ"),
        (COMMITTED[::-1], 0.25, "20.0% of the answers differ"),
    ],
)
def test_differences_are_found(right: list[bool], kept: float, named: str | None) -> None:
    """Other accuracy on the same samples, other answers of equal accuracy, other shares kept."""
    lines = evaluate.differences(results_of(right, kept), results_of(COMMITTED))
    if named is None:
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith("8x8 erase@0.25: ")
        assert named in line


def test_rows_without_a_final_ratio_keep_what_images_ask_for() -> None:
    ours, committed = (results_of(COMMITTED, kept, "stage1") for kept in (0.7, 0.72))
    assert evaluate.differences(ours, committed) == []


def test_rows_that_the_committed_evaluation_lacks() -> None:
    evaluate.check_comparable([("erase@0.25", None)], results_of(COMMITTED))
    with pytest.raises(ValueError, match=r"8x8 has no erase@0\.3"):
        evaluate.check_comparable([("erase@0.3", None)], results_of(COMMITTED))


@pytest.mark.parametrize("flags", [["--quick"], ["--samples", "510"]])
def test_a_part_does_not_replace_the_committed_evaluation(flags: list[str]) -> None:
    app = typer.Typer()
    app.command()(main)
    before = RESULTS.read_bytes()
    result = CliRunner().invoke(app, ["--write", *flags])
    assert result.exit_code == 2
    assert "2010" in result.output
    assert RESULTS.read_bytes() == before


def test_a_failed_batch_ends_the_run(tmp_path: Path) -> None:
    """The error comes at once, not after the other batches."""
    with pytest.raises(BrokenProcessPool):
        evaluate.evaluate(tmp_path / "none", 3000, [("unpruned", None)], 1, {})


def test_rows_of_every_ratio() -> None:
    names = [name for name, _ in jobs(calibrate.found())]
    assert len(set(names)) == len(names)
    for ratio in RATIOS:
        for method in ("random", "downsample", "fastv", "erase", "released", "stage2"):
            assert f"{method}@{ratio}" in names
    quick = [name for name, _ in jobs(calibrate.found(), quick=True)]
    assert set(quick) < set(names)
    assert len(BACKGROUNDS) == 6


def test_page_check_fails_on_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.main(check=True)
    other = tmp_path / "accuracy.md"
    other.write_text(page.PAGE.read_text(encoding="utf-8") + "x", encoding="utf-8")
    for name, value in (("PAGE", other), ("figure_digest", lambda: "of other results")):
        with monkeypatch.context() as patch:
            patch.setattr(page, name, value)
            with pytest.raises(SystemExit, match="not what the results give"):
                page.main(check=True)


def test_calibration_keeps_to_its_split() -> None:
    counts = calibrate.sample_counts()
    tables = [calibrate.stored_table(score=score) for score in ("entropy", "edges")]
    for table in tables:
        assert 0.9 * sum(counts.values()) <= len(table.median) <= sum(counts.values())
    assert len(calibrate.layer_scan()) == 7
    assert calibrate.found().default.lost <= 0.01


def test_random_draws_anew(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch keeps other cells of images that lie at the same place in it."""
    kept: list[list[int]] = []
    stock = runner._reported

    def remembered(right: Any, report: Any, *rest: Any) -> Any:
        kept.append(report.rows[0].images[0].kept.tolist())
        return stock(right, report, *rest)

    monkeypatch.setattr(runner, "_reported", remembered)
    monkeypatch.setattr(runner, "BATCH", 2)
    wanted: list[Job] = [("random", Random(keep_ratio=0.25))]
    bed.run("calibration", range(4), (8, 8), wanted)
    bed.run("calibration", range(2, 4), (8, 8), wanted)
    assert kept[0] != kept[1] == kept[2]
