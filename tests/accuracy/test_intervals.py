"""Intervals against textbook values, simulated coverage, and their edges."""

from __future__ import annotations

import numpy as np
import pytest

from bench.accuracy.intervals import Share, binomial, paired_difference, retained


def test_wilson_textbook() -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 and 15 of 148."""
    share = binomial(81, 263)
    assert (share.low, share.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )
    share = binomial(15, 148)
    assert (share.low, share.high) == (
        pytest.approx(0.0624, abs=5e-5),
        pytest.approx(0.1605, abs=5e-5),
    )


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.1611), (20, 0.8389, 1.0)])
def test_wilson_edges(right: int, low: float, high: float) -> None:
    share = binomial(right, 20)
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_no_samples() -> None:
    none = np.zeros(0, dtype=bool)
    with pytest.raises(ValueError, match="number"):
        binomial(0, 0)
    with pytest.raises(ValueError, match="theirs"):
        paired_difference(none, none)
    with pytest.raises(ValueError, match="theirs"):
        paired_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="unpruned"):
        retained(np.ones(3, dtype=bool), np.zeros(3, dtype=bool))


def test_paired_difference() -> None:
    """10 gained, 4 lost of 100: the sum over the differing samples."""
    ours = np.array([1] * 10 + [0] * 4 + [1] * 50 + [0] * 36, dtype=bool)
    theirs = np.array([0] * 10 + [1] * 4 + [1] * 50 + [0] * 36, dtype=bool)
    gap = paired_difference(ours, theirs)
    d = ours.astype(float) - theirs
    assert gap.value == pytest.approx(0.06)
    # Bonett and Price: two samples more, on which they differ in either direction.
    d = np.array([*d, 1, -1])
    reach = 1.959964 * d.std() / np.sqrt(102)
    assert (gap.low, gap.high) == (pytest.approx(d.mean() - reach), pytest.approx(d.mean() + reach))


def test_equal_answers_are_not_certain() -> None:
    same = np.ones(300, dtype=bool)
    gap = paired_difference(same, same)
    assert gap.value == 0
    assert gap.high == -gap.low == pytest.approx(1.959964 * np.sqrt(2) / 302)
    one = same.copy()
    one[0] = False
    wider = paired_difference(one, same)
    assert wider.high - wider.low > gap.high - gap.low


def holds(share: Share, value: float) -> bool:
    return share.low <= value <= share.high


def test_coverage() -> None:
    """About 95 of 100 simulated intervals hold the truth."""
    rng = np.random.default_rng(0)
    held = paired = rare = 0
    rounds, number = 2000, 200
    for _ in range(rounds):
        theirs = rng.random(number) < 0.8
        ours = np.where(rng.random(number) < 0.15, rng.random(number) < 0.5, theirs)
        rare += holds(paired_difference(theirs & (rng.random(number) >= 0.0125), theirs), -0.01)
        share = binomial(int(theirs.sum()), number)
        held += share.low <= 0.8 <= share.high
        gap = paired_difference(ours, theirs)
        paired += gap.low <= 0.15 * (0.5 - 0.8) <= gap.high
    assert 0.935 < held / rounds < 0.965
    assert 0.93 < paired / rounds < 0.965
    assert rare / rounds > 0.93


def test_retained_is_the_ratio_of_accuracies() -> None:
    unpruned = np.array([1] * 80 + [0] * 20, dtype=bool)
    pruned = np.array([1] * 60 + [0] * 40, dtype=bool)
    share = retained(pruned, unpruned)
    assert share.value == pytest.approx(0.75)
    assert share.low < 0.75 < share.high


def test_printed() -> None:
    assert str(Share(0.973, 0.964, 0.98)) == "97.3 ± 0.9"
