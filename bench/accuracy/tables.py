"""The tables of docs/accuracy.md, shaped like those of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.accuracy.backgrounds import BACKGROUNDS
from bench.accuracy.intervals import binomial, paired_difference, retained
from bench.accuracy.methods import DEPTHS, MAIN, PAPER_DEPTHS, RATIOS
from bench.accuracy.results import GridResults, Results
from bench.accuracy.search import Settings

LABELS = {
    "unpruned": "unpruned",
    "random": "random",
    "downsample": "smaller image, at most as many tokens",
    "fastv": "FastV (after layer 1)",
    "fastv-late": "FastV (after layer 4)",
    "erase": "**ERASE**",
    "released": "ERASE, released queries",
    "stage2": "ERASE, stage 2 only",
    "only-entropy": "entropy alone, before layer 0",
    "only-deviation": "deviation alone, before layer 0",
    "only-edges": "edges alone, before layer 0",
    "erase-deviation": "ERASE, deviation in stage 1",
    "erase-edges": "ERASE, edges in stage 1",
    "spread": "ERASE, a fifth of stage 1 spread evenly",
    "edges-own": "ERASE, edges, with thresholds of their own",
    "preset": "ERASE, thresholds of Qwen2.5-VL-7B",
    "preset-deviation": "the same, deviation in stage 1",
    "preset-edges": "the same, edges in stage 1",
    "preset-spread": "the same, a fifth spread evenly",
    "stage1": "ERASE",
    "stage1-deviation": "ERASE, deviation",
    "stage1-edges": "ERASE, edges",
}
COMPARED = (
    "random",
    "downsample",
    "fastv",
    "fastv-late",
    "only-entropy",
    "stage2",
    "erase",
    "released",
    "edges-own",
)
REMEDIES = (
    ("only-entropy", "only-deviation", "only-edges"),
    ("erase", "erase-deviation", "erase-edges", "edges-own", "spread"),
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
    if "stage1" in grid.answers:
        kept = percent(grid.answers["stage1"].mean("kept"))
        rows.append(["", "ERASE, stage 1 only", *_accuracy(grid, "stage1"), kept, kept])
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


def background_table(grid: GridResults, kind: str) -> str:
    """One kind of background: accuracy (Wilson) and what is retained (paired) at each ratio."""
    base = grid.of("unpruned", kind)
    unpruned = str(binomial(int(base.sum()), len(base)))
    rows = [["unpruned", *[unpruned, "100"] * len(RATIOS)]]
    for name in COMPARED:
        row = [LABELS[name]]
        for ratio in RATIOS:
            right = grid.of(f"{name}@{ratio}", kind)
            row += [str(binomial(int(right.sum()), len(right))), str(retained(right, base))]
        rows.append(row)
    header = [f"{kind}, {len(base)} images"]
    for ratio in RATIOS:
        header += [f"{100 * ratio:g}%: right", "retained"]
    return markdown(header, rows)


def short_table(results: Results) -> str:
    """For the README: accuracy at the least ratio, every size of image, main methods."""
    ratio = RATIOS[-1]
    names = {"unpruned": "unpruned"}
    names |= {f"{name}@{ratio}": LABELS[name] for name in MAIN}
    header = [f"right answers (%), {100 * ratio:g}% of the visual tokens kept"]
    for name in results.grids:
        header += [f"{math.prod(map(int, name.split('x')))} tokens", "in prefill"]
    rows = []
    for job, label in names.items():
        row = [label]
        for grid in results.grids.values():
            share = percent(grid.answers[job].mean("prefill"))
            row += [_accuracy(grid, job)[-2], f"{share}%"]
        rows.append(row)
    number = len(next(iter(results.grids.values())))
    return (
        f"{markdown(header, rows)}\n\nA small trained reading model, {number} held-out images of "
        "each size, 95% intervals; in prefill: share of the visual tokens that a layer ran on, "
        "averaged over layers. The smaller images lie below the sizes that the model was trained "
        "to read. All rows, losses and limits: [docs/accuracy.md](docs/accuracy.md)."
    )


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


def stage1_table(grid: GridResults) -> str:
    """Like the paper's Table 4: stage 1 alone against one ratio for every image."""
    names = {
        "unpruned": "unpruned",
        "random@stage1": "random",
        "downsample@stage1": "smaller image, at most as many tokens",
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
        label = "least loss"
        if job.startswith("alpha"):
            label = f"equation 2, alpha = {job.removeprefix('alpha')}"
        if job == "erase":
            label += " (default)"
        share, kept = _accuracy(grid, f"{job}@{ratio}")[-2:]
        pruned = percent(1 - (answers.mean("entered") or 0))
        layer = number(answers.mean("layer"))
        rows.append([label, str(len(settings.ratios)), pruned, layer, share, kept])
    return markdown(header, rows)


def levels_table(grid: GridResults, counts: Sequence[int]) -> str:
    """Accuracy with fewer complexity levels, at each ratio."""
    rows = []
    for count in (*counts, 4):
        job = "erase" if count == 4 else f"levels{count}"
        shares = [_accuracy(grid, f"{job}@{ratio}")[-2] for ratio in RATIOS]
        rows.append([str(count), *shares])
    return markdown(["levels", *(f"{100 * r:g}%" for r in RATIOS)], rows)


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
            if job not in grid.answers:
                continue
            covered = percent(grid.answers[job].mean("covered", "sign"))
            rows.append([LABELS[name], *_accuracy(grid, job), covered])
    return markdown(["stage 1", *BACKGROUNDS, "average", "retained", "sign cells kept"], rows)
