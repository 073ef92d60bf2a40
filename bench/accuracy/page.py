"""Writes docs/accuracy.md from the committed results: ``python -m bench.accuracy.page``.

``--check`` only tells whether the page is the one that the results give.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from bench.accuracy import calibrate, figures, tables
from bench.accuracy.backgrounds import BACKGROUNDS, CALIBRATION_PHOTOS
from bench.accuracy.methods import RATIOS
from bench.accuracy.results import Results, load
from bench.accuracy.search import (
    CUTS,
    LEAST_SHARE,
    MOST_LOSS,
    SCAN_RATIO,
    SCAN_SAMPLES,
    Settings,
)
from bench.accuracy.search import RATIOS as TRIED
from bench.machine import ROOT

PAGE = ROOT / "docs" / "accuracy.md"
FIGURE = ROOT / "docs" / "figures" / "retained_by_entropy.png"
WORDS = Path(__file__).parent / "findings.md"
"""What the figures mean, written by hand after they were known."""
TABLE_RATIO = RATIOS[1]
"""The paper's tables 5 and 12 and its figure 6 are at 75% pruned."""


def page(results: Results) -> str:
    """The whole page."""
    cells = {name: math.prod(map(int, name.split("x"))) for name in results.grids}
    parts = [_head(results, cells), WORDS.read_text(encoding="utf-8").strip()]
    for name, grid in results.grids.items():
        parts += [
            f"## Accuracy at {cells[name]} visual tokens",
            NOTE,
            tables.main_table(grid),
            "ERASE minus FastV (after layer 1), points, paired. Equal are the tokens that stay; in "
            "the prefill ERASE spends more (last column above):",
            tables.versus(grid, "erase", "fastv"),
            "ERASE minus FastV (after layer 4, which spends more than ERASE):",
            tables.versus(grid, "erase", "fastv-late"),
        ]
    parts += _ablations(results, cells) + _search_part(results, cells)
    parts.append("## By kind of background")
    for name, grid in results.grids.items():
        parts.append(f"{cells[name]} tokens:")
        parts += [tables.background_table(grid, kind) for kind in BACKGROUNDS]
    return "\n\n".join(parts) + "\n"


def _head(results: Results, cells: dict[str, int]) -> str:
    facts = results.facts
    sizes = ", ".join(
        f"{len(grid)} with {cells[name]} visual tokens" for name, grid in results.grids.items()
    )
    return f"""# Accuracy on a small reading model

Written by `python -m bench.accuracy --write`; do not edit. `make accuracy` compares 510 samples of
each size with it, answer by answer.

A Qwen2.5-VL of {facts["parameters"] / 1e6:.1f} million parameters (stock class, 8 decoder layers,
[model card](../bench/accuracy/weights/README.md)) reads labels such as `K37` off generated images
and is asked for one of them (`K?`); an answer counts where both digits are right. Every row runs
`generate()` on the same held-out samples ({sizes}), whose photographs and seeds the model has not
seen. {facts["device"]}, torch {facts["torch"]}, transformers {facts["transformers"]}."""


NOTE = """Accuracy in percent with 95% intervals (the longer side is printed): average (Wilson),
retained (accuracy over the unpruned one, paired). Final: share of the visual tokens that decoding
sees. Prefill: the share a decoder layer ran on, averaged over layers. `alone, before layer 0`: one
ratio for every image, nothing after it. Smaller images are resized to a grid of at most as many
tokens; training saw square ones of 5 to 7 cells a side (of 8) and 8 to 14 (of 16), so the rows
below that (25% and 15% of 64, 15% of 256) and squeezed ones (37.9% of 64: 4 x 6) say little about
resizing."""


def _ablations(results: Results, cells: dict[str, int]) -> list[str]:
    parts = [
        "## Stage 1 alone",
        "ERASE's stage 1 with its own ratio for each level, and one ratio for every image, the "
        "mean that it kept on the calibration split.",
    ]
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.stage1_table(grid)]
    parts += [
        "## Where stage 2 prunes (75% pruned)",
        "All rows with stage 1; layers are 0-based, an average is over the images on which stage 2 "
        "ran.",
    ]
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.layer_table(grid, TABLE_RATIO)]
    parts += [
        "Of the samples that are right unpruned, how many stay right when stage 2 alone prunes "
        "every image after one layer, by the image's entropy (95% intervals):",
        f"![retained by entropy](figures/{FIGURE.name})",
        "## Signs on photographs, and what helps",
        "`deviation` scores a cell by how far its entropy is from the image's median, `edges` by "
        "the strength of its steepest edges, `spread` reserves a fifth of stage 1's tokens for an "
        "even pattern. But for the row that says so, thresholds and ratios are those found for "
        "entropy. `sign cells kept`: share of the asked label's cells that stay, on signs.",
    ]
    for name, grid in results.grids.items():
        for ratio in RATIOS:
            parts += [
                f"{cells[name]} tokens, {100 * ratio:g}% kept:",
                tables.remedy_table(grid, ratio),
            ]
    parts += ["## Exact against released queries", "Exact minus released, points, paired:"]
    for name, grid in results.grids.items():
        parts += [f"{cells[name]} tokens:", tables.versus(grid, "erase", "released")]
    return parts


def _search_part(results: Results, cells: dict[str, int]) -> list[str]:
    found = calibrate.found()
    settings = {"erase": found.default}
    settings |= {f"levels{n}": s for n, s in found.levels.items()}
    settings |= {f"alpha{a}": s for a, s in found.alphas.items()}
    parts = ["## How the thresholds were found", _words_on_search(found.default, found.edges)]
    parts += ["Answers (%) that this stage 1 loses, of those right unpruned:", _losses(results)]
    for name, grid in results.grids.items():
        parts += [
            f"{cells[name]} tokens, 75% pruned (stage 1 never keeps less than the final share; "
            "layers where stage 2 ran):",
            tables.search_table(grid, TABLE_RATIO, settings),
            "Accuracy by number of levels:",
            tables.levels_table(grid, tuple(found.levels)),
        ]
    scan = calibrate.layer_scan()
    return [
        *parts,
        "Average share (%) that stage 1 prunes where nothing follows it:",
        tables.adaptive_table(results.grids, "entered", TABLE_RATIO),
        "Average 0-based layer of stage 2, where it ran (75% pruned):",
        tables.adaptive_table(results.grids, "layer", TABLE_RATIO),
        f"Accuracy (%) when stage 2 alone keeps {SCAN_RATIO:.0%} after one layer, "
        f"{SCAN_SAMPLES} images of the calibration split, 64 tokens:",
        tables.markdown(
            ["layer", *map(str, range(len(scan)))], [["accuracy", *map(tables.percent, scan)]]
        ),
    ]


def _words_on_search(chosen: Settings, edges: Settings) -> str:
    counts = calibrate.sample_counts()
    used = " and ".join(f"{n} of {name} cells" for name, n in counts.items())
    return (
        f"On the calibration split ({used}; other photographs and seeds than the test split, "
        f"{len(CALIBRATION_PHOTOS)} photographs in all) stage 1 ran alone at {len(TRIED)} ratios. "
        f"All thresholds among {CUTS} quantiles of the medians that leave at least "
        f"{LEAST_SHARE:.0%} of the samples in each level, with all ratios that do not rise as "
        "images get simpler, were replayed on that table; the choice that prunes most while "
        f"losing at most {MOST_LOSS:.0%} of the answers was taken: {_described(chosen)}. The same "
        f"for edges: {_described(edges)}. `bench/accuracy/calibration.json` holds the tables. "
        "Layers follow the rule of `EraseConfig.for_model` and were not searched."
    )


def _described(chosen: Settings) -> str:
    thresholds = ", ".join(f"{t:.3f}" for t in chosen.thresholds)
    ratios = ", ".join(f"{r:g}" for r in chosen.ratios)
    return (
        f"thresholds {thresholds} nats, ratios {ratios}, where stage 1 prunes "
        f"{chosen.pruned:.1%} and loses {chosen.lost:.2%}"
    )


def _losses(results: Results) -> str:
    """Calibration beside test, by kind: what was fitted does not show how it carries over."""
    chosen = calibrate.found().default
    table = calibrate.stored_table()
    rows = [["calibration", *map(tables.percent, table.lost_by_kind(chosen))]]
    for name, grid in results.grids.items():
        lost = []
        for kind in BACKGROUNDS:
            base = grid.of("unpruned", kind)
            lost.append(tables.percent(float((~grid.of("stage1", kind)[base]).mean())))
        rows.append([f"test, {name}", *lost])
    return tables.markdown(["split", *BACKGROUNDS], rows)


def digest(results: Results) -> str:
    """Of everything that the figure shows."""
    known = hashlib.sha256()
    for name, grid in results.grids.items():
        known.update(name.encode() + grid.median.tobytes() + grid.of("unpruned").tobytes())
        for depth in figures.SHOWN:
            known.update(grid.of(f"only-layer{depth}@{TABLE_RATIO}").tobytes())
    return known.hexdigest()


def figure_digest() -> str:
    """What the committed figure says it shows."""
    with Image.open(FIGURE) as image:
        return str(image.info.get("Description"))


def write(results: Results) -> None:
    """Page and figure, each whole or not at all."""
    text = page(results)
    part = FIGURE.with_suffix(".part.png")
    figures.retained_by_entropy(results.grids, TABLE_RATIO, part, digest(results))
    os.replace(part, FIGURE)
    temporary = PAGE.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, PAGE)


def main(
    check: Annotated[bool, typer.Option(help="Only compare.")] = False,
) -> None:
    """Write docs/accuracy.md from the committed results."""
    results = load()
    if not check:
        write(results)
    elif PAGE.read_text(encoding="utf-8") != page(results) or figure_digest() != digest(results):
        sys.exit(f"{PAGE} is not what the results give: run python -m bench.accuracy.page")


if __name__ == "__main__":
    typer.run(main)
