"""The generated task: frozen splits, labels that can be read, targets in the right cells."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.accuracy.backgrounds import BACKGROUNDS, draw_background
from bench.accuracy.curriculum import (
    GLYPHS,
    PHASES,
    Batches,
    Kind,
    joint_start,
    make_batch,
    phase_at,
)
from bench.accuracy.layout import ANSWER_TOKENS
from bench.accuracy.samples import CELL, CONTRAST, GAP, LUMA, PHOTOS, Sample, held_out

GRIDS = ((8, 8), (16, 16), (6, 11))
FROZEN = {
    ("test", (8, 8)): "W?55/4 H?36/4 L?10/3 W?07/3 X?21/4 K?89/5 V?11/6 N?21/5",
    ("test", (16, 16)): "F?63/6 V?59/4 R?39/8 W?07/8 K?45/8 A?98/10 G?81/7 M?46/6",
    ("calibration", (8, 8)): "M?63/4 P?25/3 R?14/5 F?29/4 E?90/3 P?99/4 A?89/3 X?85/3",
}
"""Questions, answers and numbers of labels of the first samples: published figures rest on them."""


def some(split: str, grid: tuple[int, int], count: int = 12) -> list[Sample]:
    return [held_out(split, i, grid) for i in range(count)]


@pytest.mark.parametrize(("split", "grid"), FROZEN)
def test_splits_are_frozen(split: str, grid: tuple[int, int]) -> None:
    drawn = " ".join(f"{s.question}{s.answer}/{len(s.labels)}" for s in some(split, grid, 8))
    assert drawn == FROZEN[split, grid]


def test_samples_are_drawn_alone() -> None:
    """A sample depends on its split, grid and number, and on nothing drawn before it."""
    late = held_out("test", 7, (8, 8))
    again = some("test", (8, 8), 8)[7]
    assert np.array_equal(late.image, again.image)
    assert late.labels == again.labels
    assert late.asked == again.asked
    others = [held_out("calibration", 7, (8, 8)), held_out("test", 8, (8, 8))]
    assert all(late.labels != other.labels for other in others)


def test_no_photograph_is_in_two_splits() -> None:
    for one, other in itertools.combinations(PHOTOS.values(), 2):
        assert not set(one) & set(other)


@pytest.mark.parametrize("grid", GRIDS)
def test_labels(grid: tuple[int, int]) -> None:
    """Apart from each other, inside the image, of different letters, glyph centres inside."""
    samples = some("test", grid)
    assert [s.background for s in samples[:6]] == list(BACKGROUNDS)
    for sample in samples:
        assert sample.image.shape == (grid[0] * CELL, grid[1] * CELL, 3)
        assert sample.image.dtype == np.uint8
        assert sample.grid == grid
        keys = [label.key for label in sample.labels]
        assert len(set(keys)) == len(keys) >= 3
        for label in sample.labels:
            left, top, right, bottom = label.box
            assert 0 <= left < right <= sample.image.shape[1]
            assert 0 <= top < bottom <= sample.image.shape[0]
            assert all(left <= x <= right and top <= y <= bottom for x, y in label.centres)
        for one, other in itertools.combinations(sample.labels, 2):
            a, b = one.box, other.box
            apart = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
            assert apart >= GAP


def test_labels_stand_out() -> None:
    """Somewhere in every label's box the brightness is far from the box's mean."""
    for sample in some("test", (16, 16), 24):
        for label in sample.labels:
            left, top, right, bottom = label.box
            levels = sample.image[top:bottom, left:right].astype(float) @ LUMA
            assert np.ptp(levels) > 0.6 * CONTRAST


def test_answer_cells() -> None:
    """Exactly the cells that hold a pixel of the label's box."""
    for sample in some("test", (6, 11)):
        mask = np.zeros(sample.image.shape[:2], dtype=bool)
        left, top, right, bottom = sample.labels[sample.asked].box
        mask[top:bottom, left:right] = True
        touched = mask.reshape(6, CELL, 11, CELL).any((1, 3)).ravel()
        assert np.array_equal(sample.answer_cells(), touched.nonzero()[0])


def test_unknown_background() -> None:
    with pytest.raises(ValueError, match="kind: expected one of"):
        draw_background(np.random.default_rng(0), "marble", (28, 28), ())


def test_batches_depend_on_their_number_only() -> None:
    one, other = Batches(3, 1000), Batches(3, 1000)
    a, b = one[500], (other[0], other[500])[1]
    assert a.ids.equal(b.ids)
    assert a.images.equal(b.images)
    assert not one[501].images.equal(a.images)
    assert not Batches(4, 1000)[500].images.equal(a.images)


def test_phases() -> None:
    assert sum(phase.share for phase in PHASES) == pytest.approx(1.0)
    start = joint_start(1000)
    assert phase_at(start - 1, 1000).kinds[0][1].turns == 0
    assert all(kind.turns for _, kind in phase_at(start, 1000).kinds)
    assert phase_at(999, 1000) is PHASES[-1]


def test_glyph_targets() -> None:
    """As many marks as glyphs, unless two equal ones share a cell; scaling keeps the places."""
    rng = np.random.default_rng(0)
    kind = Kind((8, 8), 6, (4, 4), 3, shrink=(5, 5))
    batch = make_batch(rng, kind, BACKGROUNDS, 1.0)
    assert batch.grid == (5, 5)
    assert batch.images.shape == (6, 140, 140, 3)
    assert batch.glyphs.shape == (6, 25, len(GLYPHS))
    marks = batch.glyphs.sum((1, 2))
    assert ((marks > 8) & (marks <= 12)).all()
    assert batch.ids.shape[0] == 6
    assert len(batch.predicting) == 3 * ANSWER_TOKENS


def test_encoder_batches_have_no_questions() -> None:
    batch = make_batch(np.random.default_rng(0), Kind((4, 4), 2, (1, 2), 0), ("flat",), 1.0)
    assert batch.ids.numel() == 0
    assert batch.glyphs.sum() > 0
