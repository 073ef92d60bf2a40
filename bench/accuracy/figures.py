"""The pictures of docs/accuracy.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.accuracy.intervals import binomial
from bench.accuracy.methods import DEPTHS
from bench.accuracy.results import GridResults

BINS = 6
"""Groups of about equally many images, by entropy; equal entropies stay together."""
SHOWN = (DEPTHS[0], DEPTHS[1], DEPTHS[3])
"""Layers: those of the paper's early and late curves, and this bed's early one between them."""
MARKERS = ("o", "^", "s")


def retained_by_entropy(
    grids: dict[str, GridResults], ratio: float, path: Path, digest: str
) -> None:
    """Like the paper's Figure 6: of the samples right unpruned, how many stay so, by entropy.

    Stage 2 alone, early and late, with binomial 95% intervals.

    Args:
        digest: written into the file, so that a stale picture can be told.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, grid) in zip(
        np.atleast_1d(figure.subplots(1, len(grids), sharey=True)), grids.items(), strict=True
    ):
        base = grid.of("unpruned")
        medians = grid.median[base]
        edges = np.quantile(medians, np.linspace(0, 1, BINS + 1))
        which = np.clip(np.searchsorted(edges, medians, side="right") - 1, 0, BINS - 1)
        for depth, marker in zip(SHOWN, MARKERS, strict=True):
            right = grid.of(f"only-layer{depth}@{ratio}")[base]
            groups = [right[which == b] for b in range(BINS) if (which == b).any()]
            centres = [float(medians[which == b].mean()) for b in range(BINS) if (which == b).any()]
            shares = [binomial(int(group.sum()), len(group)) for group in groups]
            values = np.array([[s.value, s.low, s.high] for s in shares]) * 100
            axes.errorbar(
                centres,
                values[:, 0],
                yerr=[values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]],
                marker=marker,
                capsize=3,
                label=f"layer {depth}",
            )
        axes.set_title(f"{name} cells")
        axes.set_xlabel("median entropy of the image (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("still right (%)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Description": digest})
