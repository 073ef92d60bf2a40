"""Writes docs/accuracy.md from the committed results: ``python -m bench.accuracy.page``.

``--check`` only tells whether the page is the one that the results give.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.accuracy import calibrate, figures, tables
from bench.accuracy.methods import RATIOS
from bench.accuracy.results import Results, load
from bench.accuracy.search import MOST_LOSS, SAMPLES, SCAN_RATIO, Settings
from bench.machine import ROOT

PAGE = ROOT / "docs" / "accuracy.md"
FIGURE = ROOT / "docs" / "figures" / "retained_by_entropy.png"
WORDS = Path(__file__).parent / "findings.md"
"""What the figures mean, written by hand after they were known."""
TABLE_RATIO = RATIOS[1]
"""The paper's tables 5 and 12 and its figure 6 are at 75% pruned."""


def page(results: Results) -> str:
    """The whole page."""
    found = calibrate.found()
    grids = results.grids
    cells = {name: rows * columns for name, (rows, columns) in _sides(grids).items()}
    parts = [_head(results, cells), WORDS.read_text(encoding="utf-8").strip()]
    for name, grid in grids.items():
        parts += [
            f"## Accuracy at {cells[name]} visual tokens",
            _note(grid, cells[name]),
            tables.main_table(grid),
            "ERASE minus FastV, points, paired:",
            tables.versus(grid, "erase", "fastv"),
        ]
    parts += _ablations(results, found.default, cells)
    parts += _search_part(results, cells)
    return "\n\n".join(parts) + "\n"


def _sides(grids: dict[str, object]) -> dict[str, tuple[int, int]]:
    return {name: tuple(map(int, name.split("x"))) for name in grids}  # type: ignore[misc]


def _head(results: Results, cells: dict[str, int]) -> str:
    facts = results.facts
    sizes = ", ".join(
        f"{len(grid)} with {cells[name]} visual tokens" for name, grid in results.grids.items()
    )
    return f"""# Accuracy on a small reading model

Written by `python -m bench.accuracy --write` and `python -m bench.accuracy.page`; do not edit.

A Qwen2.5-VL of {facts["parameters"] / 1e6:.1f} million parameters (stock class, 8 decoder layers,
[model card](../bench/accuracy/weights/README.md)) reads labels such as `K37` off generated images
and is asked for one of them (`K?`); an answer counts where both digits are right. Every row runs
`generate()` on the same held-out samples ({sizes}), whose photographs and seeds the model has not
seen. {facts["device"]}, torch {facts["torch"]}, transformers {facts["transformers"]}."""


def _note(grid: object, cells: int) -> str:
    return (
        f"Accuracy in percent with 95% intervals: average (Wilson), retained (accuracy over the "
        f"unpruned one, paired). Final: share of the {cells} tokens that decoding sees. Prefill: "
        "that share averaged over the decoder's layers."
    )


def _ablations(results: Results, default: Settings, cells: dict[str, int]) -> list[str]:
    parts = ["## Stage 1 alone"]
    matched = 1 - default.pruned
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.stage1_table(grid, matched)]
    parts.append("## Where stage 2 prunes (75% pruned)")
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.layer_table(grid, TABLE_RATIO)]
    parts += [
        "Of the samples that are right unpruned, how many stay right when every image is pruned "
        f"after layer {figures.EARLY} or after layer {figures.LATE}, by the image's entropy:",
        f"![retained by entropy](figures/{FIGURE.name})",
        "## Signs on photographs, and what helps",
        "`deviation` scores a cell by how far its entropy is from the image's median, `edges` by "
        "the strength of its steepest edges. `sign cells kept`: share of the asked label's cells "
        "that stay, on signs.",
    ]
    for name, grid in results.grids.items():
        for ratio in RATIOS:
            parts += [
                f"{cells[name]} tokens, {100 * ratio:g}% kept:",
                tables.remedy_table(grid, ratio),
            ]
    parts.append("## Exact against released queries")
    parts.append("Exact minus released, points, paired:")
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.versus(grid, "erase", "released")]
    return parts


def _search_part(results: Results, cells: dict[str, int]) -> list[str]:
    found = calibrate.found()
    chosen = found.default
    settings = {"erase": chosen}
    settings |= {f"levels{n}": s for n, s in found.levels.items()}
    settings |= {f"alpha{a}": s for a, s in found.alphas.items()}
    used = " and ".join(f"{n} with {g[0] * g[1]} tokens" for g, n in SAMPLES.items())
    thresholds = ", ".join(f"{t:.3f}" for t in chosen.thresholds)
    ratios = ", ".join(f"{r:g}" for r in chosen.ratios)
    parts = [
        "## How the thresholds were found",
        f"On the calibration split ({used}; other photographs and seeds than the test split) stage "
        "1 ran alone at 19 ratios; every choice of thresholds and ratios was replayed on that "
        f"table, and the one that prunes most while losing at most {MOST_LOSS:.0%} of the answers "
        f"was taken: thresholds {thresholds} nats, ratios {ratios}; there it prunes "
        f"{chosen.pruned:.1%} and loses {chosen.lost:.2%}. `bench/accuracy/calibration.json` holds "
        "the table. Layers follow the rule of `EraseConfig.for_model` and were not searched.",
    ]
    for name, grid in results.grids.items():
        parts += [
            f"{cells[name]} tokens, 75% pruned:",
            tables.search_table(grid, TABLE_RATIO, settings),
        ]
    parts += [
        "Average share (%) that stage 1 prunes:",
        tables.adaptive_table(results.grids, "entered", TABLE_RATIO),
        "Average 0-based layer of stage 2, where it ran (75% pruned):",
        tables.adaptive_table(results.grids, "layer", TABLE_RATIO),
        f"Accuracy (%) when stage 2 alone keeps {SCAN_RATIO:.0%} after one layer, calibration "
        "split, 64 tokens:",
        tables.markdown(
            ["layer", *map(str, range(len(calibrate.layer_scan())))],
            [["accuracy", *map(tables.percent, calibrate.layer_scan())]],
        ),
    ]
    return parts


def write(results: Results) -> None:
    """Page and figure, each whole or not at all."""
    part = FIGURE.with_suffix(".part.png")
    figures.retained_by_entropy(results.grids, TABLE_RATIO, part)
    os.replace(part, FIGURE)
    temporary = PAGE.with_suffix(".part")
    temporary.write_text(page(results), encoding="utf-8")
    os.replace(temporary, PAGE)


def main(
    check: Annotated[bool, typer.Option(help="Only compare.")] = False,
) -> None:
    """Write docs/accuracy.md from the committed results."""
    results = load()
    if not check:
        write(results)
    elif PAGE.read_text(encoding="utf-8") != page(results):
        sys.exit(f"{PAGE} is not what the results give: run python -m bench.accuracy.page")


if __name__ == "__main__":
    typer.run(main)
