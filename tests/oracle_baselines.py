"""What the baselines must keep: the integration's oracle with other choices.

Nothing here comes from the packages under test.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.oracle import Oracle
from tests.oracle_choices import RowChoice, top_indices


def settings(keep_ratio: float | None, layer: int = 0) -> SimpleNamespace:
    """Fields of ERASE with which every token enters and every row is pruned after ``layer``."""
    return SimpleNamespace(
        keep_ratio=keep_ratio,
        entropy_thresholds=(),
        stage1_keep_ratios=(1.0,),
        early_layer=layer,
        late_layer=layer,
        complex_levels=None,
        query="exact",
        stage1=False,
        stage2=True,
        stage1_score="entropy",
        stage1_spread=0.0,
    )


class FastVOracle(Oracle):
    """Scores are the last text token's row of the eager attention weights, mean over heads."""

    def __init__(self, model: Any, images: list[Any], keep_ratio: float, layer: int) -> None:
        super().__init__(model, settings(keep_ratio, layer), images)

    def _choose_rows(self, places: Any, past: int) -> list[RowChoice]:
        rows = super()._choose_rows(places, past)
        for row in rows:
            row.text = row.text[-1:]
        return rows


class RandomOracle(Oracle):
    """Cells with the largest numbers of Python's generator, drawn in the order of the prefill."""

    def __init__(self, model: Any, images: list[Any], keep_ratio: float, seed: int) -> None:
        super().__init__(model, settings(None), images)
        self._ratio, self._seed = keep_ratio, seed

    def _choose_rows(self, places: Any, past: int) -> list[RowChoice]:
        rows = super()._choose_rows(places, past)
        generator = random.Random(self._seed)
        for row in rows:
            kept: list[int] = []
            start = 0
            for image in row.images:
                size = len(image.entropy)
                numbers = np.array([generator.random() for _ in range(size)], np.float32)
                image.scores = numbers
                image.kept = top_indices(numbers, int(size * self._ratio))
                kept += [row.visual[start + cell] for cell in image.kept]
                start += size
            row.stage1 = row.kept = kept
        return rows
