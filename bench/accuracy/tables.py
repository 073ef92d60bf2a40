"""The tables of docs/accuracy.md, shaped like those of the paper."""

from __future__ import annotations

from collections.abc import Sequence

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.intervals import binomial, paired_difference, retained
from bench.accuracy.methods import DEPTHS, PAPER_DEPTHS, RATIOS, SCORES
from bench.accuracy.results import GridResults
from bench.accuracy.search import Settings

LABELS = {
    "unpruned": "unpruned",
    "random": "random",
    "downsample": "smaller image, as many tokens",
    "fastv": "FastV (after layer 1)",
    "erase": "**ERASE**",
    "released": "ERASE, released queries",
    "stage2": "ERASE, stage 2 only",
    "only-entropy": "entropy only",
    "only-deviation": "deviation only",
    "only-edges": "edges only",
    "erase-deviation": "ERASE, deviation in stage 1",
    "erase-edges": "ERASE, edges in stage 1",
    "spread": "ERASE, a fifth of stage 1 spread evenly",
    "preset": "ERASE, thresholds of Qwen2.5-VL-7B",
    "preset-deviation": "the same, deviation in stage 1",
    "preset-edges": "the same, edges in stage 1",
    "preset-spread": "the same, a fifth spread evenly",
    "stage1": "ERASE",
    "stage1-deviation": "ERASE, deviation",
    "stage1-edges": "ERASE, edges",
}
COMPARED = ("random", "downsample", "fastv", "only-entropy", "stage2", "erase", "erase-edges")
REMEDIES = (
    ("only-entropy", "only-deviation", "only-edges"),
    ("erase", "erase-deviation", "erase-edges", "spread"),
    ("preset", "preset-deviation", "preset-edges", "preset-spread"),
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are figures."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def percent(value: float | None) -> str:
    """A share in percent; a dash where it is not known."""
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Two decimals; a dash where it is not known."""
    return "-" if value is None else f"{value:.2f}"


def _by_background(grid: GridResults, job: str) -> list[str]:
    return [percent(float(grid.of(job, kind).mean())) for kind in BACKGROUNDS]


def _accuracy(grid: GridResults, job: str) -> list[str]:
    """Per background, the average with its interval, what is retained with a paired one."""
    right = grid.of(job)
    share = binomial(int(right.sum()), len(right))
    kept = "100" if job == "unpruned" else str(retained(right, grid.of("unpruned")))
    return [*_by_background(grid, job), str(share), kept]


def main_table(grid: GridResults) -> str:
    """Like the paper's Table 1: accuracy by kind of background at each ratio."""
    header = ["kept", "method", *BACKGROUNDS, "average", "retained", "final", "prefill"]
    rows = [["100%", LABELS["unpruned"], *_accuracy(grid, "unpruned"), "100.0", "100.0"]]
    for ratio in RATIOS:
        for index, name in enumerate(n for n in COMPARED if f"{n}@{ratio}" in grid.answers):
            job = f"{name}@{ratio}"
            answers = grid.answers[job]
            rows.append(
                [
                    "" if index else f"{100 * ratio:g}%",
                    LABELS[name],
                    *_accuracy(grid, job),
                    percent(answers.mean("kept")),
                    percent(answers.mean("prefill")),
                ]
            )
    return markdown(header, rows, text_columns=2)


def versus(grid: GridResults, ours: str, theirs: str) -> str:
    """Paired difference of two methods by kind of background, in points."""
    header = ["kept", *BACKGROUNDS, "all"]
    rows = []
    for ratio in RATIOS:
        first, second = f"{ours}@{ratio}", f"{theirs}@{ratio}"
        parts = [*BACKGROUNDS, None]
        gaps = [paired_difference(grid.of(first, k), grid.of(second, k)) for k in parts]
        rows.append([f"{100 * ratio:g}%", *(_signed(gap) for gap in gaps)])
    return markdown(header, rows)


def _signed(gap: object) -> str:
    text = str(gap)
    return text if text.startswith("-") else f"+{text}"


def stage1_table(grid: GridResults, matched: float) -> str:
    """Like the paper's Table 4: stage 1 alone against a fixed ratio that prunes as much."""
    names = {
        "unpruned": "unpruned",
        "random@stage1": "random",
        "downsample@stage1": "smaller image, as many tokens",
        "only-entropy@stage1": "entropy, the same ratio for every image",
        "only-edges@stage1": "edges, the same ratio for every image",
        "stage1": "ERASE, stage 1",
        "stage1-deviation": "ERASE, stage 1, deviation",
        "stage1-edges": "ERASE, stage 1, edges",
    }
    rows = [
        [label, percent(1 - (grid.answers[job].mean("entered") or 0)), *_accuracy(grid, job)]
        for job, label in names.items()
        if job in grid.answers
    ]
    return markdown(["method", "pruned", *BACKGROUNDS, "average", "retained"], rows)


def layer_table(grid: GridResults, ratio: float) -> str:
    """Like the paper's Table 5: one fixed layer for every image against ERASE's choice."""
    rows = [["unpruned", *_accuracy(grid, "unpruned"), "100.0"]]
    for depth, paper in zip(DEPTHS, PAPER_DEPTHS, strict=True):
        job = f"layer{depth}@{ratio}"
        label = f"layer {depth} (as {paper} of 28)"
        rows.append([label, *_accuracy(grid, job), percent(grid.answers[job].mean("prefill"))])
    answers = grid.answers[f"erase@{ratio}"]
    label = f"ERASE ({number(answers.mean('layer'))} on average)"
    rows.append([label, *_accuracy(grid, f"erase@{ratio}"), percent(answers.mean("prefill"))])
    return markdown(["stage 2 after", *BACKGROUNDS, "average", "retained", "prefill"], rows)


def search_table(grid: GridResults, ratio: float, found: dict[str, Settings]) -> str:
    """Like the paper's Table 12: other numbers of levels and other weights of the search."""
    header = ["search", "levels", "stage 1 pruned", "stage 2 layer", "average", "retained"]
    rows = []
    for job, settings in found.items():
        answers = grid.answers[f"{job}@{ratio}"]
        label = {"erase": "least loss (default)"}.get(job, job)
        if job.startswith("levels"):
            label = "least loss"
        if job.startswith("alpha"):
            label = f"equation 2, alpha {job.removeprefix('alpha')}"
        share, kept = _accuracy(grid, f"{job}@{ratio}")[-2:]
        pruned = percent(1 - (answers.mean("entered") or 0))
        layer = number(answers.mean("layer"))
        rows.append([label, str(len(settings.ratios)), pruned, layer, share, kept])
    return markdown(header, rows)


def adaptive_table(grids: dict[str, GridResults], field: str, ratio: float) -> str:
    """Like the paper's Tables 15 and 16: stage-1 pruning, or stage-2 layer, by background."""
    rows = []
    for name, grid in grids.items():
        answers = grid.answers["stage1" if field == "entered" else f"erase@{ratio}"]
        values = [answers.mean(field, kind) for kind in (*BACKGROUNDS, None)]
        if field == "entered":
            shown = [percent(None if v is None else 1 - v) for v in values]
        else:
            shown = [number(v) for v in values]
        rows.append([name, *shown])
    return markdown(["cells", *BACKGROUNDS, "average"], rows)


def remedy_table(grid: GridResults, ratio: float) -> str:
    """Every stage-1 score in every setting, by kind of background."""
    rows = []
    for group in REMEDIES:
        for name in group:
            job = f"{name}@{ratio}"
            covered = percent(grid.answers[job].mean("covered", "sign"))
            rows.append([LABELS[name], *_accuracy(grid, job), covered])
    return markdown(["stage 1", *BACKGROUNDS, "average", "retained", "sign cells kept"], rows)


__all__ = [
    "COMPARED",
    "LABELS",
    "SCORES",
    "adaptive_table",
    "layer_table",
    "main_table",
    "markdown",
    "remedy_table",
    "search_table",
    "stage1_table",
    "versus",
]
