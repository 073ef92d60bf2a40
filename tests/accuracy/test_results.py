"""What an evaluation stores, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.results import GridResults, Results, load, save, summarise
from bench.accuracy.runner import Outcome


def outcome(number: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    share = rng.random(number).astype(np.float32)
    layer = rng.choice([-1, 1, 4], number).astype(np.int32)
    layer[:: len(BACKGROUNDS)] = -1
    return Outcome(
        rng.random(number) < 0.7, share, share, share, layer, layer, share, share * np.nan
    )


def test_stored_and_loaded(tmp_path: Path) -> None:
    """Every answer, and means by background; a mean over no known value stays unknown."""
    made = outcome(37, 0)
    grid = GridResults(made.median, {"erase@0.25": summarise(made)})
    path = tmp_path / "results.json"
    save(Results({"device": "a CPU"}, {"8x8": grid}), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json"]
    loaded = load(path)
    assert loaded.facts == {"device": "a CPU"}
    again = loaded.grids["8x8"]
    assert len(again) == 37
    assert np.array_equal(again.of("erase@0.25"), made.right)
    assert np.array_equal(again.of("erase@0.25", "noise"), made.right[2::6])
    answers = again.answers["erase@0.25"]
    assert answers.mean("kept", "page") == pytest.approx(made.kept[3::6].mean(), abs=1e-5)
    assert answers.mean("layer", "flat") is None
    assert answers.mean("covered") is None
    pruned = made.layer[1::6]
    expected = pruned[pruned >= 0].mean()
    assert answers.mean("layer", "gradient") == pytest.approx(expected, abs=1e-5)


def test_joined_outcomes() -> None:
    one, other = outcome(6, 2), outcome(12, 3)
    joined = Outcome.joined([one, other])
    assert np.array_equal(joined.right, np.concatenate([one.right, other.right]))
    assert np.array_equal(joined.layer, np.concatenate([one.layer, other.layer]))
