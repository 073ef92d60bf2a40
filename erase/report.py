"""What one prefill did: entropies, levels, layers, kept tokens, bytes, backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

IMAGE_HEADER = ("row", "image", "median H", "level", "tokens", "stage 1")
ROW_HEADER = ("layer", "final", "kept", "prefill")


@dataclass
class BytesReport:
    """Bytes before pruning, after the prefill, and after the first decode step (None until then).

    ``before`` is what the same prefill would hold unpruned.
    """

    before: int = 0
    after_prefill: int = 0
    after_first_decode: int | None = None


@dataclass
class ImageReport:
    """One image or video.

    ``entropy`` f32 [cells] nats; ``kept`` i64, ascending cells local to the image. Cells are the
    tokens that may be pruned, in the order of the prompt. ``stage1_scores`` f32 [cells], aligned
    with ``entropy``: what stage 1 ranked them by; None where that is the entropy.
    """

    entropy: Tensor
    median: float
    level: int
    kept: Tensor
    modality: str = "image"
    stage1_scores: Tensor | None = None


@dataclass
class RowReport:
    """One batch row; positions are those of the unpruned sequence, earlier turns included.

    ``images`` lists the row's images, then its pruned videos; ``visual_tokens`` counts what may be
    pruned. ``layer``, ``candidates`` and ``scores`` are None where stage 2 did not run.
    ``prefill_ratio``: share of ``visual_tokens`` that a decoder layer ran on in this prefill, mean
    over all layers: those up to ``layer`` run on what entered, later ones on what was kept. None
    without visual tokens.
    """

    images: list[ImageReport]
    visual_tokens: int
    layer: int | None = None
    candidates: Tensor | None = None
    scores: Tensor | None = None
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    prefill_ratio: float | None = None

    @property
    def kept_ratio(self) -> float | None:
        """Share of ``visual_tokens`` that was finally kept; None without visual tokens."""
        return len(self.kept) / self.visual_tokens if self.visual_tokens else None


@dataclass
class PrefillReport:
    """One prefill with new visual tokens.

    ``kv_lengths``: valid rows per layer right after the prefill, of batch row 0 for a batch of
    one, else a list per batch row; 0 for a recurrent layer, which keeps a state of fixed size
    instead. Empty where no cache is kept. ``kv_bytes``, ``kv_storage_bytes``: of keys and values.
    ``backends``: operator -> backend.
    ``approximate_pixels``: bf16 pixel values, where some levels may be off by one.
    ``num_layers``: decoder layers of the model.

    Printed: ``stage 1`` and ``final`` are tokens; ``kept`` and ``prefill`` are each row's
    ``kept_ratio`` and ``prefill_ratio``. Both tell what came out, not what was asked for.
    """

    rows: list[RowReport]
    kv_lengths: list[int] | list[list[int]] = field(default_factory=list)
    kv_bytes: BytesReport = field(default_factory=BytesReport)
    kv_storage_bytes: BytesReport = field(default_factory=BytesReport)
    backends: dict[str, str] = field(default_factory=dict)
    approximate_pixels: bool = False
    num_layers: int = 0

    def __str__(self) -> str:
        return render(
            [*IMAGE_HEADER, *ROW_HEADER],
            [line for b, row in enumerate(self.rows) for line in _row_lines(b, row)],
            self._footer(),
        )

    def _footer(self) -> str:
        kv = self.kv_bytes
        parts = [f"KV {_mib(kv.before)} -> {_mib(kv.after_prefill)} MiB"]
        if self.backends:
            parts.append(", ".join(f"{op}: {name}" for op, name in sorted(self.backends.items())))
        if self.approximate_pixels:
            parts.append("pixels approximate (bf16)")
        return " | ".join(parts)


def _row_lines(index: int, row: RowReport) -> list[list[str]]:
    layer = "-" if row.layer is None else str(row.layer)
    whole = [layer, str(len(row.kept)), _percent(row.kept_ratio), _percent(row.prefill_ratio)]
    if not row.images:
        return [[str(index), "-", "-", "-", "0", "0", *whole]]
    lines = []
    for i, image in enumerate(row.images):
        first = i == 0
        lines.append(
            [
                str(index) if first else "",
                str(i),
                f"{image.median:.3f}",
                str(image.level),
                str(len(image.entropy)),
                str(len(image.kept)),
                *(whole if first else [""] * len(whole)),
            ]
        )
    return lines


def render(header: Sequence[str], lines: Sequence[Sequence[str]], footer: str) -> str:
    """A plain right-aligned table; needs no terminal, so it also prints in logs."""
    table = [list(header), *[list(line) for line in lines]]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    padded = [[cell.rjust(w) for cell, w in zip(line, widths, strict=True)] for line in table]
    text = ["  ".join(line) for line in padded]
    return "\n".join([*text, footer])


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f}"
