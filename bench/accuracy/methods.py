"""What is compared: every method and ablation, by name, at every final ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.accuracy.runner import Job
from bench.accuracy.search import EARLY_LAYER, LATE_LAYER, Settings
from erase.methods import Downsample, EraseConfig, FastV, Random, find_preset

RATIOS = (0.379, 0.25, 0.15)
"""Final keep ratios of the paper's tables (62.1%, 75% and 85% pruned)."""
DEPTHS = (0, 1, 2, 4)
"""0-based layers for the paper's layers 2, 7, 12 and 17 of 28, at the same share of 8 layers."""
PAPER_DEPTHS = (2, 7, 12, 17)
SPREAD = 0.2
"""Share of stage 1's tokens that the ablation reserves for an even spread."""
PRESET = "Qwen2.5-VL-7B"

MAIN = ("random", "downsample", "fastv", "fastv-late", "erase")
SCORES = ("entropy", "deviation", "edges")


@dataclass(frozen=True)
class Found:
    """What the search chose: the default, the same for edges, other numbers of levels, weights."""

    default: Settings
    edges: Settings
    levels: Mapping[int, Settings]
    alphas: Mapping[float, Settings]


def jobs(found: Found, quick: bool = False) -> list[Job]:
    """Every row that is run; names are ``method`` or ``method@ratio``."""
    erase = found.default.method()
    every: list[Job] = [("unpruned", None), ("stage1", erase)]
    for score in SCORES[1:]:
        every.append((f"stage1-{score}", erase.replace(stage1_score=score)))
    if not quick:
        every += _matched(1 - found.default.pruned)
    for ratio in RATIOS:
        every += [(f"{name}@{ratio}", method) for name, method in _at(found, ratio, quick)]
    return every


def _matched(ratio: float) -> list[Job]:
    """One ratio for every image, as much as stage 1 pruned on the calibration split."""
    alone = Settings((), (ratio,), 0.0, 0.0)
    return [
        ("random@stage1", Random(keep_ratio=ratio)),
        ("downsample@stage1", Downsample(keep_ratio=ratio)),
        ("only-entropy@stage1", alone.method()),
        ("only-edges@stage1", alone.method(stage1_score="edges")),
    ]


def _at(found: Found, ratio: float, quick: bool) -> list[Job]:
    full = found.default.method(keep_ratio=ratio)
    rows: list[Job] = [
        ("random", Random(keep_ratio=ratio)),
        ("downsample", Downsample(keep_ratio=ratio)),
        ("fastv", FastV(keep_ratio=ratio, layer=EARLY_LAYER)),
        ("fastv-late", FastV(keep_ratio=ratio, layer=LATE_LAYER)),
        ("erase", full),
    ]
    if quick:
        return rows
    rows += [
        ("released", full.replace(query="released")),
        ("stage2", full.replace(stage1=False)),
        ("spread", full.replace(stage1_spread=SPREAD)),
        ("edges-own", found.edges.method(keep_ratio=ratio, stage1_score="edges")),
    ]
    for score in SCORES:
        flat = Settings((), (ratio,), 0.0, 0.0).method(stage1_score=score)
        rows.append((f"only-{score}", flat))
        if score != "entropy":
            rows.append((f"erase-{score}", full.replace(stage1_score=score)))
    if ratio != RATIOS[0]:
        preset = _preset(ratio)
        rows.append(("preset", preset))
        rows += [(f"preset-{score}", preset.replace(stage1_score=score)) for score in SCORES[1:]]
        rows.append(("preset-spread", preset.replace(stage1_spread=SPREAD)))
    rows += [(f"levels{n}", s.method(keep_ratio=ratio)) for n, s in found.levels.items()]
    if ratio == RATIOS[1]:  # the ratio of the paper's tables 5 and 12
        rows += [(f"alpha{a}", s.method(keep_ratio=ratio)) for a, s in found.alphas.items()]
        for k in DEPTHS:
            fixed = full.replace(early_layer=k, late_layer=k)
            rows += [(f"layer{k}", fixed), (f"only-layer{k}", fixed.replace(stage1=False))]
    return rows


def _preset(ratio: float) -> EraseConfig:
    """Thresholds and ratios of the paper's Table 13, on this model's layers."""
    published = find_preset(PRESET)
    if published is None:
        raise ValueError(f"no preset {PRESET}")
    return EraseConfig(
        keep_ratio=ratio,
        entropy_thresholds=published.entropy_thresholds,
        stage1_keep_ratios=published.stage1_keep_ratios,
        early_layer=EARLY_LAYER,
        late_layer=LATE_LAYER,
    )
