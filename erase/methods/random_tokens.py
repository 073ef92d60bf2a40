"""Random tokens: the baseline that any choice of tokens must beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.methods._parts import (
    Settings,
    best_cells,
    check_flag,
    check_int,
    check_ratio,
    plan_evenly,
)
from erase.methods._protocol import (
    Draft,
    ImagePlan,
    ImageSignals,
    LayerSignals,
    ModelFacts,
    RowPlan,
    Signal,
)
from erase.transfer import upload
from erase_kernels import SegmentedTopK


@dataclass(frozen=True)
class Random(Settings):
    """Keeps cells chosen uniformly at random; a method of the pruning protocol.

    Before the language model an image (or video) of n cells keeps ``int(n · keep_ratio)``: those
    with the largest of n numbers out of ``random.Random(seed)``, compared in float32, ties to the
    lowest index. There is no second stage.

    The numbers are drawn anew for each prefill, one for each cell in the order of the prefill
    (batch row after batch row, videos after all images). So prefills of the same sizes keep the
    same cells, on every device; what an image keeps also depends on the sizes of those before it.
    Beams and returned sequences of a prompt keep the same cells of its images, unless the attention
    mask hides some of the prompt's image tokens, or transformers encodes a copy of the pixels for
    each (releases that do not encode before the forward): then each row has numbers of its own.
    Average over seeds; ``session.override(seed=...)`` changes it for a request.

    Args:
        keep_ratio: share of each image's visual tokens, in (0, 1].
        seed: an int of at least 0.
        force_gathers: gather also where nothing is dropped; results must not change.

    Raises:
        TypeError, ValueError: a field is out of its range; the message names it.
    """

    keep_ratio: float
    seed: int = 0
    force_gathers: bool = False

    def __post_init__(self) -> None:
        check_ratio("keep_ratio", self.keep_ratio)
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))
        check_int("seed", self.seed)
        check_flag("force_gathers", self.force_gathers)

    @property
    def needs(self) -> frozenset[Signal]:
        """No signal."""
        return frozenset()

    def validate(self, model: ModelFacts) -> None:
        """Nothing: it runs on every model."""

    def draft(self, images: ImageSignals) -> Draft:
        """Counts of all images, and medians for the report, on the device."""
        return plan_evenly(images, self.keep_ratio)

    def decide(self, images: Sequence[ImagePlan], batch: int) -> tuple[RowPlan, ...]:
        """No second stage in any row."""
        return tuple(
            RowPlan(None, sum(image.count for image in images if image.row == row))
            for row in range(batch)
        )

    def stage1_scores(self, images: ImageSignals, draft: Draft) -> Tensor:
        """The number drawn for each cell, f32 [n]."""
        draw = random.Random(self.seed).random
        numbers = [draw() for _ in range(sum(images.sizes))]
        return upload(numbers, torch.float32, images.entropy.device)

    def select(
        self, images: ImageSignals, counts: Sequence[int], scores: Tensor | None
    ) -> SegmentedTopK:
        """The drawn cells of each image, ascending; ``scores`` are the numbers drawn."""
        return best_cells(images, images.entropy if scores is None else scores, counts)

    def score(self, layer: LayerSignals) -> Tensor:
        """RuntimeError: there is no second stage to score for."""
        raise RuntimeError("score: Random has no second stage")
