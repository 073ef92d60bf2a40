"""The search for thresholds against trying everything, and what it promises."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.accuracy import search
from bench.accuracy.search import RATIOS, Settings, Table, from_json, least_loss, weighted

FEW = (0.25, 0.5, 1.0)


@pytest.fixture
def few_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RATIOS", FEW)
    monkeypatch.setattr(search, "CUTS", 5)


def random_table(seed: int, number: int = 40, ratios: int = len(FEW)) -> Table:
    """More tokens mostly, but not always, give more right answers; all are right unpruned."""
    rng = np.random.default_rng(seed)
    median = rng.choice(np.linspace(0, 4, 9), number).astype(np.float32)
    need = rng.integers(0, ratios, (number, 1))
    right = (np.arange(ratios) >= need) ^ (rng.random((number, ratios)) < 0.1)
    right[:, -1] = True
    return Table(median, right, np.arange(number) % 6)


def replay(table: Table, chosen: Settings) -> tuple[float, float]:
    """Pruned and lost shares, one sample after the other."""
    pruned = lost = 0.0
    for median, right in zip(table.median, table.right, strict=True):
        level = next((i for i, t in enumerate(chosen.thresholds) if median > t), -1)
        ratio = chosen.ratios[level]
        pruned += 1 - ratio
        lost += not right[search.RATIOS.index(ratio)]
    return pruned / len(table.median), lost / len(table.median)


def everything(table: Table, levels: int) -> list[Settings]:
    """Every allowed choice, by brute force."""
    cuts = np.unique(np.quantile(table.median, np.linspace(0, 1, search.CUTS + 2)[1:-1]))
    found = []
    for chosen in itertools.combinations([float(np.float32(c)) for c in cuts[::-1]], levels - 1):
        sizes = np.bincount(
            [next((i for i, t in enumerate(chosen) if m > t), levels - 1) for m in table.median],
            minlength=levels,
        )
        if min(sizes) < search.LEAST_SHARE * len(table.median):
            continue
        for ratios in itertools.product(search.RATIOS, repeat=levels):
            if list(ratios) == sorted(ratios, reverse=True):
                made = Settings(chosen, ratios, 0.0, 0.0)
                found.append(Settings(chosen, ratios, *replay(table, made)))
    return found


@pytest.mark.usefixtures("few_ratios")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_least_loss_is_the_best_allowed(seed: int, levels: int) -> None:
    table = random_table(seed)
    chosen = least_loss(table, levels, most_loss=0.1)
    assert replay(table, chosen) == (pytest.approx(chosen.pruned), pytest.approx(chosen.lost))
    assert chosen.lost <= 0.1
    allowed = [s.pruned for s in everything(table, levels) if s.lost <= 0.1 + 1e-12]
    assert chosen.pruned == pytest.approx(max(allowed))


@pytest.mark.usefixtures("few_ratios")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha", [0.45, 0.85])
def test_weighted_maximises_equation_2(seed: int, alpha: float) -> None:
    table = random_table(seed)
    chosen = weighted(table, 3, alpha)
    assert replay(table, chosen) == (pytest.approx(chosen.pruned), pytest.approx(chosen.lost))

    def value(s: Settings) -> float:
        return alpha * (1 - s.lost) + (1 - alpha) * s.pruned

    assert value(chosen) == pytest.approx(max(map(value, everything(table, 3))))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.integers(1, 4), loss=st.floats(0, 0.3))
def test_promises(seed: int, levels: int, loss: float) -> None:
    """Descending thresholds and ratios, no more lost than allowed, as a valid method."""
    table = random_table(seed, number=80, ratios=len(RATIOS))
    chosen = least_loss(table, levels, loss)
    assert chosen.lost <= loss + 1e-9
    assert list(chosen.thresholds) == sorted(set(chosen.thresholds), reverse=True)
    assert list(chosen.ratios) == sorted(chosen.ratios, reverse=True)
    method = chosen.method(keep_ratio=0.25)
    assert method.entropy_thresholds == chosen.thresholds
    assert (method.early_layer, method.late_layer) == (search.EARLY_LAYER, search.LATE_LAYER)


def test_more_loss_prunes_more() -> None:
    table = random_table(1, number=120, ratios=len(RATIOS))
    pruned = [least_loss(table, 3, loss).pruned for loss in (0.0, 0.02, 0.1, 0.5)]
    assert pruned == sorted(pruned)
    assert pruned[0] < pruned[-1]


def test_too_few_samples() -> None:
    table = Table(
        np.zeros(10, dtype=np.float32), np.ones((10, len(RATIOS)), dtype=bool), np.arange(10) % 6
    )
    with pytest.raises(ValueError, match="levels: no 4 levels"):
        least_loss(table, 4)
    with pytest.raises(ValueError, match="levels: no 2 levels"):
        weighted(table, 2, 0.5)


def test_table_survives_json() -> None:
    table = random_table(3, ratios=len(RATIOS))
    again = from_json(json.loads(json.dumps(search.as_json(table))))
    assert np.allclose(again.median, table.median, atol=1e-5)
    assert np.array_equal(again.right, table.right)
    assert np.array_equal(again.kind, table.kind)
    stored = json.loads(json.dumps(search.as_json(table)))
    stored["ratios"][0] = 0.05
    with pytest.raises(ValueError, match="expected ratios"):
        from_json(stored)


@pytest.mark.usefixtures("few_ratios")
def test_lost_by_kind() -> None:
    table = random_table(5)
    chosen = least_loss(table, 3, most_loss=0.2)
    lost = table.lost_by_kind(chosen)
    assert np.mean(lost) > 0
    for kind in range(6):
        some = table.kind == kind
        part = Table(table.median[some], table.right[some], table.kind[some])
        assert lost[kind] == pytest.approx(replay(part, chosen)[1])
