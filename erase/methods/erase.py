"""ERASE: entropy of the image decides what enters, text-to-vision attention decides what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from erase.methods._models import layers_by_rule
from erase.methods._parts import (
    Settings,
    check_attention_layer,
    check_choice,
    check_descending,
    check_flag,
    check_int,
    check_layer,
    check_ratio,
    check_share,
    count_table,
    plan_levels,
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
from erase.methods._settings import (
    PRESET_FIELDS,
    depth_of,
    describe_missing,
    named_preset,
    warn_of_cells,
)
from erase.methods._stage1 import STAGE1_SCORES, Stage1Score, scores_of, spread_and_best
from erase.methods.presets import find_preset
from erase_kernels import SegmentedTopK, text_to_vision_scores


@dataclass(frozen=True)
class EraseConfig(Settings):
    """Configuration of ERASE (paper, section 3); a method of the pruning protocol.

    Stage 1 (3.2, 3.3): an image's complexity is the lower median of its cells' entropies. Level =
    first i with ``median > entropy_thresholds[i]``, else the last; the image keeps its
    ``int(n · max(stage1_keep_ratios[level], keep_ratio))`` cells of highest entropy, or of highest
    ``stage1_score``.
    Stage 2 (3.4, 3.5): after ``late_layer`` where an image of the row is complex, else after
    ``early_layer``, the row keeps the ``int(N · keep_ratio)`` tokens with the highest
    text-to-vision scores, N = its visual tokens in this prefill; their keys and values leave the
    cache of all earlier layers too. Ties go to the lowest index in both stages.

    Args:
        keep_ratio: final share of visual tokens, in (0, 1]. None: stage 1 only, no clamp.
        entropy_thresholds: m numbers in nats, strictly descending.
        stage1_keep_ratios: m + 1 shares in (0, 1], most complex level first.
        early_layer, late_layer: 0-based decoder layers; pruning happens after that layer ran.
        complex_levels: how many of the m + 1 levels prune late; None: ``(m + 2) // 2``, as the
            published code does (the paper's text differs for m = 2 and m = 4).
        query: "exact" scores with the layer's own queries; "released" as the published code does,
            from the layer's input without its layer norm, skipping the first text tokens.
        stage1, stage2: switches for ablations. Without stage 1 every token enters the model.
        force_gathers: gather also where nothing is dropped; results must not change.
        stage1_score: what stage 1 ranks an image's cells by. "entropy": as the paper. Beyond it:
            "deviation", ``|H - median|``, also keeps cells that are calmer than their image;
            "edges", the strength of their edges (``erase_kernels.patch_edges``). Level and count
            come from the entropies in any case. It has no effect without stage 1. Black bars that a
            processor puts beside an image are no edges in LLaVA-NeXT and LLaVA-OneVision; the gray
            that squares several images of one OneVision prompt counts as part of them.
        stage1_spread: share in [0, 1) of the cells that stage 1 keeps, ``int(count · share)`` of
            them, which it keeps for their places, whatever their scores: evenly in row-major order,
            not in the plane. In images about a Fibonacci number of cells wide (8, 13, 21, 34, ...)
            a small share stands in few columns.

    Raises:
        TypeError, ValueError: a field is out of its range; the message names it.
    """

    keep_ratio: float | None
    entropy_thresholds: tuple[float, ...]
    stage1_keep_ratios: tuple[float, ...]
    early_layer: int
    late_layer: int
    complex_levels: int | None = None
    query: Literal["exact", "released"] = "exact"
    stage1: bool = True
    stage2: bool = True
    force_gathers: bool = False
    stage1_score: Stage1Score = "entropy"
    stage1_spread: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "entropy_thresholds", tuple(self.entropy_thresholds))
        object.__setattr__(self, "stage1_keep_ratios", tuple(self.stage1_keep_ratios))
        if self.keep_ratio is not None:
            check_ratio("keep_ratio", self.keep_ratio)
            object.__setattr__(self, "keep_ratio", float(self.keep_ratio))
        check_descending("entropy_thresholds", self.entropy_thresholds)
        levels = len(self.entropy_thresholds) + 1
        if len(self.stage1_keep_ratios) != levels:
            raise ValueError(
                f"stage1_keep_ratios: expected {levels} ratios (one more than entropy_thresholds), "
                f"got {len(self.stage1_keep_ratios)}"
            )
        for ratio in self.stage1_keep_ratios:
            check_ratio("stage1_keep_ratios", ratio)
        for name in ("entropy_thresholds", "stage1_keep_ratios"):
            # Plain floats: counts and JSON must not depend on a number's type.
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        self._check_layers()
        check_choice("query", self.query, ("exact", "released"))
        check_choice("stage1_score", self.stage1_score, STAGE1_SCORES)
        check_share("stage1_spread", self.stage1_spread)
        object.__setattr__(self, "stage1_spread", float(self.stage1_spread))
        for name in ("stage1", "stage2", "force_gathers"):
            check_flag(name, getattr(self, name))

    def _check_layers(self) -> None:
        for name in ("early_layer", "late_layer"):
            check_int(name, getattr(self, name))
        if self.early_layer > self.late_layer:
            raise ValueError(
                f"early_layer: expected at most late_layer ({self.late_layer}), "
                f"got {self.early_layer}"
            )
        levels = len(self.entropy_thresholds) + 1
        if self.complex_levels is not None:
            if isinstance(self.complex_levels, bool) or not isinstance(self.complex_levels, int):
                got = type(self.complex_levels).__name__
                raise TypeError(f"complex_levels: expected an int or None, got {got}")
            if not 0 <= self.complex_levels <= levels:
                raise ValueError(
                    f"complex_levels: expected 0 to {levels}, got {self.complex_levels}"
                )

    @classmethod
    def for_model(
        cls, model: Any, *, transfer_from: str | None = None, **fields: Any
    ) -> EraseConfig:
        """Published settings for a model object, its config, or a hub name.

        Thresholds and ratios are those of the paper's Table 13 where the model has them. Layers
        follow the model's depth: early 1, or 3 where visual features enter several layers
        (Qwen3-VL); late ``3 · depth // 5``. Whether the model can be pruned, ``prune`` checks.

        Args:
            model: ``PreTrainedModel``, also inside PEFT or ``torch.compile``; its config; or a
                name or path such as ``"Qwen/Qwen2.5-VL-7B-Instruct"``, which is not looked up.
            transfer_from: take thresholds and ratios from this preset instead. In the paper's
                Table 14 those of Qwen2.5-VL-7B keep 87.00% of InternVL3-8B's accuracy at 85%
                pruned, its own 90.11%; both models have cells of 28 x 28 pixels.
            **fields: override any field; ``keep_ratio`` defaults to None.

        Raises:
            ValueError: no preset matches and neither thresholds and ratios nor
                ``transfer_from`` were given; ``transfer_from`` is no preset; the depth is unknown.
            TypeError: ``model`` is none of the above, or ``transfer_from`` no string.

        Warns:
            UserWarning: the preset's cells and the model's are of different sizes.
        """
        preset = find_preset(model) if transfer_from is None else named_preset(transfer_from)
        wanted = [name for name in PRESET_FIELDS if name not in fields]
        if preset is None and wanted:
            raise ValueError(describe_missing(model, wanted))
        settings: dict[str, Any] = {"keep_ratio": None}
        if preset is not None:
            settings |= {name: getattr(preset, name) for name in wanted}
            if transfer_from is not None and "entropy_thresholds" in wanted:
                warn_of_cells(preset, model)
        if not {"early_layer", "late_layer"} <= fields.keys():
            early, late = layers_by_rule(*depth_of(model))
            settings |= {"early_layer": early, "late_layer": late}
        return cls(**(settings | fields))

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals of the protocol: entropies, edges to rank by them, the queries of ``query``."""
        queries: Signal = "layer_queries" if self.query == "exact" else "residual_queries"
        by_edges = self.stage1 and self.stage1_score == "edges"
        edges: set[Signal] = {"pixel_edges"} if by_edges else set()
        return frozenset({"pixel_entropies", queries, *edges})

    @property
    def num_complex_levels(self) -> int:
        """Levels below this number prune late."""
        if self.complex_levels is not None:
            return self.complex_levels
        return (len(self.entropy_thresholds) + 2) // 2

    def validate(self, model: ModelFacts) -> None:
        """ValueError where a layer does not exist in ``model``, or has no attention to score by."""
        for name in ("early_layer", "late_layer"):
            value = getattr(self, name)
            check_layer(name, value, model.num_layers)
            if self.stage2 and self.keep_ratio is not None:
                check_attention_layer(name, value, model.attention_layers)

    def draft(self, images: ImageSignals) -> Draft:
        """Medians, levels and stage-1 counts of all images, on the device."""
        levels = len(self.entropy_thresholds) + 1
        ratios = self.stage1_keep_ratios if self.stage1 else (1.0,) * levels
        table = count_table(images.sizes, ratios, self.keep_ratio)
        return plan_levels(images, self.entropy_thresholds, table)

    def decide(self, images: Sequence[ImagePlan], batch: int) -> tuple[RowPlan, ...]:
        """Layer (the latest of a row's images) and final count of each batch row.

        Stage 2 runs in a row where it has something to drop, or where gathers are forced.
        """
        plans = []
        for row in range(batch):
            mine = [image for image in images if image.row == row]
            entered = sum(image.count for image in mine)
            if not mine or self.keep_ratio is None or not self.stage2:
                plans.append(RowPlan(None, entered))
                continue
            final = min(int(sum(image.size for image in mine) * self.keep_ratio), entered)
            complex_row = any(image.level < self.num_complex_levels for image in mine)
            layer = self.late_layer if complex_row else self.early_layer
            runs = final < entered or self.force_gathers
            plans.append(RowPlan(layer if runs else None, final))
        return tuple(plans)

    def stage1_scores(self, images: ImageSignals, draft: Draft) -> Tensor | None:
        """What ``stage1_score`` names, f32 [n]; None for the entropy, or without stage 1."""
        return scores_of(self.stage1_score, images, draft) if self.stage1 else None

    def select(
        self, images: ImageSignals, counts: Sequence[int], scores: Tensor | None
    ) -> SegmentedTopK:
        """Best cells of each image and those of the spread, ascending; ties: lowest index."""
        scores = images.entropy if scores is None else scores
        return spread_and_best(images, scores, counts, self.stage1_spread)

    def score(self, layer: LayerSignals) -> Tensor:
        """Attention that text tokens pay each candidate: mean over heads, sum over text."""
        return text_to_vision_scores(
            layer.query,
            layer.key,
            layer.rows,
            layer.row_offsets,
            layer.columns,
            layer.column_offsets,
            key_mask=layer.key_mask,
            scale=layer.scale,
        )
