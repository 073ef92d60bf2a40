"""Thresholds and stage-1 ratios for the bed's model, from its calibration split alone.

For every calibration sample and every ratio of a grid, stage 1 runs alone and the answer is noted.
From that table any choice of thresholds and ratios can be replayed exactly, so the best one is
found by trying all that are allowed (the paper samples 100 of them, appendix D): thresholds among
quantiles of the medians, enough samples in every level, and ratios that do not rise as images get
simpler. Only samples that are right unpruned count, as there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.runner import BATCH, Bed, Job
from erase.methods import EraseConfig

RATIOS = tuple(round(0.05 * i, 2) for i in range(2, 21))
"""Stage-1 keep ratios tried, 0.1 to 1."""
CUTS = 24
"""Candidate thresholds: this many quantiles of the medians."""
LEAST_SHARE = 0.05
"""Of the samples in every level, so that no level is fitted to a handful of them."""
MOST_LOSS = 0.01
"""Of the samples that are right unpruned; the paper's stage 1 stays within one point (4.3.1)."""
LEVELS = 4
EARLY_LAYER, LATE_LAYER = 1, 4
"""0-based, of 8 layers: the rule of ``EraseConfig.for_model``, not searched."""
SAMPLES = {(8, 8): 480, (16, 16): 240}
"""Of the calibration split, by grid."""
SCAN_SAMPLES = 240
SCAN_RATIO = 0.15


@dataclass(frozen=True)
class Table:
    """Samples that are right unpruned.

    Attributes:
        median: f32 [n] nats; ``right``: bool [n, ratios].
        kind: i64 [n], which of ``BACKGROUNDS``.
    """

    median: np.ndarray
    right: np.ndarray
    kind: np.ndarray

    def lost_by_kind(self, chosen: Settings) -> list[float]:
        """Share of each background's answers that ``chosen`` loses."""
        thresholds = np.array(chosen.thresholds, dtype=np.float32)
        level = (self.median[:, None] <= thresholds).sum(1)
        ratio = np.array([RATIOS.index(r) for r in chosen.ratios])[level]
        right = self.right[np.arange(len(self.right)), ratio]
        return [float((~right[self.kind == k]).mean()) for k in range(len(BACKGROUNDS))]


@dataclass(frozen=True)
class Settings:
    """A choice, and what it does on the table.

    Attributes:
        thresholds: nats, descending; ``ratios``: one more, most complex level first.
        pruned: mean share of tokens that stage 1 drops; ``lost``: share of answers lost.
    """

    thresholds: tuple[float, ...]
    ratios: tuple[float, ...]
    pruned: float
    lost: float

    def method(self, **fields: object) -> EraseConfig:
        """As a method; ``fields`` override, ``keep_ratio`` is None (stage 1 only) by default."""
        settings: dict[str, object] = {
            "keep_ratio": None,
            "entropy_thresholds": self.thresholds,
            "stage1_keep_ratios": self.ratios,
            "early_layer": EARLY_LAYER,
            "late_layer": LATE_LAYER,
        }
        return EraseConfig(**(settings | fields))  # type: ignore[arg-type]


def measure(
    bed: Bed, progress: Callable[[], None], stage1_score: str = "entropy", part: float = 1.0
) -> Table:
    """Runs stage 1 alone at every ratio on the calibration split.

    Args:
        progress: called after each ratio of each batch; ``measurements(part)`` times in all.
        part: of the samples, for a quick try.
    """
    level = Settings((), (1.0,), 0.0, 0.0).method(stage1_score=stage1_score)
    jobs: list[Job] = [("unpruned", None)]
    jobs += [(str(r), level.replace(stage1_keep_ratios=(r,))) for r in RATIOS]
    medians, right, kinds = [], [], []
    for grid, count in sizes(part).items():
        outcomes = bed.run("calibration", range(count), grid, jobs, progress)
        base = outcomes["unpruned"].right
        medians.append(outcomes[str(RATIOS[0])].median[base])
        right.append(np.stack([outcomes[str(r)].right[base] for r in RATIOS], axis=1))
        kinds.append((np.arange(count) % len(BACKGROUNDS))[base])
    return Table(np.concatenate(medians), np.concatenate(right), np.concatenate(kinds))


def sizes(part: float) -> dict[tuple[int, int], int]:
    """Calibration samples of each grid, whole batches."""
    return {grid: max(BATCH, int(n * part) // BATCH * BATCH) for grid, n in SAMPLES.items()}


def measurements(part: float = 1.0) -> int:
    """How often ``measure`` reports progress."""
    return (len(RATIOS) + 1) * sum(-(-n // BATCH) for n in sizes(part).values())


def least_loss(table: Table, levels: int, most_loss: float = MOST_LOSS) -> Settings:
    """The settings that prune most while losing at most ``most_loss`` of the answers."""
    budget = int(most_loss * len(table.median))
    best: tuple[tuple[float, float], Settings] | None = None
    for cuts, parts in _partitions(table, levels):
        lost = [len(part) - part.sum(0) for part in parts]
        found = _most_pruned(lost, [len(part) for part in parts], budget)
        if found is not None:
            settings = _settings(table, cuts, parts, found)
            rank = (round(settings.pruned, 9), -settings.lost)
            if best is None or rank > best[0]:
                best = rank, settings
    if best is None:
        raise ValueError(f"levels: no {levels} levels hold enough of {len(table.median)} samples")
    return best[1]


def weighted(table: Table, levels: int, alpha: float) -> Settings:
    """Settings that maximise ``alpha * accuracy + (1 - alpha) * pruned`` (paper, equation 2)."""
    best: tuple[float, Settings] | None = None
    for cuts, parts in _partitions(table, levels):
        gains = [
            alpha * part.sum(0) + (1 - alpha) * len(part) * (1 - np.array(RATIOS)) for part in parts
        ]
        found = _descending_argmax(gains)
        settings = _settings(table, cuts, parts, found)
        value = alpha * (1 - settings.lost) + (1 - alpha) * settings.pruned
        if best is None or value > best[0] + 1e-12:
            best = value, settings
    if best is None:
        raise ValueError(f"levels: no {levels} levels hold enough of {len(table.median)} samples")
    return best[1]


def _partitions(
    table: Table, levels: int
) -> itertools.chain[tuple[tuple[float, ...], list[np.ndarray]]]:
    """Every way to cut the samples into levels: (thresholds, right answers of each level)."""
    known = np.unique(np.quantile(table.median, np.linspace(0, 1, CUTS + 2)[1:-1]))
    cuts = [float(np.float32(value)) for value in known[::-1]]
    least = LEAST_SHARE * len(table.median)

    def parts(chosen: tuple[float, ...]) -> list[np.ndarray]:
        level = (table.median[:, None] <= np.array(chosen, dtype=np.float32)).sum(1)
        return [table.right[level == i] for i in range(levels)]

    every = ((chosen, parts(chosen)) for chosen in itertools.combinations(cuts, levels - 1))
    return itertools.chain(p for p in every if min(len(part) for part in p[1]) >= least)


def _most_pruned(lost: list[np.ndarray], sizes: list[int], budget: int) -> list[int] | None:
    """Ratio index of each level, not ascending, that prunes most within the budget of losses."""
    none = -np.inf
    dropped = 1 - np.array(RATIOS)
    value = np.zeros((budget + 1, len(RATIOS)))
    choices = []
    for level_lost, size in zip(lost, sizes, strict=True):
        # reach[b, r]: the best so far with at most b lost and a last ratio of r or more.
        order = np.maximum.accumulate(value[:, ::-1], axis=1)[:, ::-1]
        new = np.full_like(value, none)
        for r, loss in enumerate(level_lost.tolist()):
            if loss <= budget:
                new[loss:, r] = order[: budget + 1 - loss, r] + size * dropped[r]
        choices.append((order, value, level_lost))
        value = new
    if value[budget].max() == none:
        return None
    found = [int(value[budget].argmax())]
    left = budget
    for index in range(len(lost) - 1, 0, -1):
        left -= int(choices[index][2][found[0]])
        previous = choices[index][1][left, found[0] :]
        found.insert(0, found[0] + int(previous.argmax()))
    return found


def _descending_argmax(gains: list[np.ndarray]) -> list[int]:
    """Ratio index of each level, not ascending, with the largest sum of gains."""
    value = np.zeros(len(RATIOS))
    history = []
    for gain in gains:
        history.append(value)
        value = gain + np.maximum.accumulate(value[::-1])[::-1]
    found = [int(value.argmax())]
    for previous in history[:0:-1]:
        found.insert(0, found[0] + int(previous[found[0] :].argmax()))
    return found


def _settings(
    table: Table, cuts: tuple[float, ...], parts: list[np.ndarray], found: list[int]
) -> Settings:
    number = len(table.median)
    lost = sum(int((~part[:, r]).sum()) for part, r in zip(parts, found, strict=True))
    pruned = sum(len(part) * (1 - RATIOS[r]) for part, r in zip(parts, found, strict=True))
    return Settings(cuts, tuple(RATIOS[r] for r in found), pruned / number, lost / number)


def scan_layers(bed: Bed, layers: int, progress: Callable[[], None]) -> list[float]:
    """Accuracy on calibration samples when stage 2 alone prunes after each layer but the last."""
    everything = Settings((), (1.0,), 0.0, 0.0).method(keep_ratio=SCAN_RATIO, stage1=False)
    jobs: list[Job] = [
        (str(k), everything.replace(early_layer=k, late_layer=k)) for k in range(layers - 1)
    ]
    outcomes = bed.run("calibration", range(SCAN_SAMPLES), (8, 8), jobs, progress)
    return [float(outcomes[name].right.mean()) for name, _ in jobs]


def as_json(table: Table) -> dict[str, object]:
    """The table in a few kilobytes: medians, and right answers as one string per sample."""
    return {
        "ratios": RATIOS,
        "kind": table.kind.tolist(),
        "median": [round(float(m), 5) for m in table.median],
        "right": ["".join("01"[int(x)] for x in row) for row in table.right],
    }


def from_json(stored: dict[str, object]) -> Table:
    """Inverse of ``as_json``.

    Raises:
        ValueError: the table is of other ratios than ``RATIOS``.
    """
    if tuple(stored["ratios"]) != RATIOS:  # type: ignore[arg-type]
        raise ValueError(f"stored: expected ratios {RATIOS}, got {stored['ratios']}")
    rows = [[c == "1" for c in row] for row in stored["right"]]  # type: ignore[attr-defined]
    median = np.array(stored["median"], dtype=np.float32)
    return Table(median, np.array(rows), np.array(stored["kind"]))
