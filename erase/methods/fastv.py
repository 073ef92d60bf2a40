"""FastV: the attention of the last text token in an early layer decides what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.methods._parts import (
    Settings,
    best_cells,
    check_attention_layer,
    check_flag,
    check_int,
    check_layer,
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
from erase_kernels import SegmentedTopK, text_to_vision_scores


@dataclass(frozen=True)
class FastV(Settings):
    """FastV; a method of the pruning protocol.

    All tokens enter the language model. After decoder layer ``layer`` each batch row keeps
    ``int(N · keep_ratio)`` of its N visual tokens in this prefill: those with the highest
    ``mean_h softmax(q_h · k / √d)``, the attention (over all keys, mean over heads) that the last
    text token of the row pays them in that layer. Ties go to the lowest index. Tokens after the
    last text token, and those of a row without text, score 0.

    It differs from the published code in three points. Keys and values of dropped tokens leave the
    cache of layers up to ``layer`` too (there they stay). The count is ``int(N · keep_ratio)``
    (there ``round(N · (1 - R))`` with R the share dropped). Each row of a batch has its own last
    text token, which is the last token that is no image and no padding (there the last one of a
    batch of one, whatever it is).

    Args:
        keep_ratio: share of a row's visual tokens, in (0, 1].
        layer: 0-based decoder layer after which the row is pruned; the published K = 2 is 1.
        force_gathers: gather also where nothing is dropped; results must not change.

    Raises:
        TypeError, ValueError: a field is out of its range; the message names it.

    Source:
        "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764); code:
        pkunlp-icler/FastV.
    """

    keep_ratio: float
    layer: int = 1
    force_gathers: bool = False

    def __post_init__(self) -> None:
        check_ratio("keep_ratio", self.keep_ratio)
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))
        check_int("layer", self.layer)
        check_flag("force_gathers", self.force_gathers)

    @property
    def needs(self) -> frozenset[Signal]:
        """The layer's own queries."""
        return frozenset({"layer_queries"})

    def validate(self, model: ModelFacts) -> None:
        """ValueError where ``layer`` does not exist in ``model``, or has no attention."""
        check_layer("layer", self.layer, model.num_layers)
        check_attention_layer("layer", self.layer, model.attention_layers)

    def draft(self, images: ImageSignals) -> Draft:
        """All cells of all images, and medians for the report, on the device."""
        return plan_evenly(images, 1.0)

    def decide(self, images: Sequence[ImagePlan], batch: int) -> tuple[RowPlan, ...]:
        """Layer and final count of each batch row; rows that drop nothing have no second stage."""
        plans = []
        for row in range(batch):
            size = sum(image.size for image in images if image.row == row)
            final = int(size * self.keep_ratio)
            runs = final < size or (self.force_gathers and size > 0)
            plans.append(RowPlan(self.layer if runs else None, final))
        return tuple(plans)

    def stage1_scores(self, images: ImageSignals, draft: Draft) -> None:
        """None: nothing is ranked before the language model."""

    def select(
        self, images: ImageSignals, counts: Sequence[int], scores: Tensor | None
    ) -> SegmentedTopK:
        """Every cell: ``counts`` are those of ``draft``."""
        return best_cells(images, images.entropy, counts)

    def score(self, layer: LayerSignals) -> Tensor:
        """Attention that the row's last text token pays each candidate: mean over heads."""
        rows, offsets = layer.rows, layer.row_offsets
        ends = offsets[1:]
        if len(rows):
            # One query for every batch row, so that nothing needs to be counted on the host; one
            # of a row without text is another row's, and does not count.
            rows = rows.index_select(0, (ends - 1).clamp(min=0))
            offsets = torch.arange(len(offsets), dtype=torch.int32, device=offsets.device)
        scores = text_to_vision_scores(
            layer.query,
            layer.key,
            rows,
            offsets,
            layer.columns,
            layer.column_offsets,
            key_mask=layer.key_mask,
            scale=layer.scale,
        )
        answers = torch.repeat_interleave(
            ends > layer.row_offsets[:-1], layer.column_offsets.diff(), output_size=len(scores)
        )
        return scores.masked_fill(~answers, 0.0)
