"""What a pruning method is, and what the integration tells it.

A method is one frozen dataclass: its fields are its configuration. It never touches a model. The
integration captures the signals it asks for, calls it at two moments of a prefill, and does all
the rest (sessions, batching, positions, cache eviction, reports) for every method alike:

1. before the language model: ``draft`` and ``stage1_scores`` (device work) -> one small copy to the
   host -> ``decide`` -> ``select``;
2. after decoder layer ``RowPlan.layer``: ``score`` -> the best ``RowPlan.final`` tokens of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from erase_kernels import SegmentedTopK

Signal = Literal["pixel_entropies", "pixel_edges", "layer_queries", "residual_queries"]
"""``pixel_entropies``: entropy of every image cell. ``pixel_edges``: its edges
(``erase_kernels.patch_edges``). ``layer_queries``: a decoder layer's own rotated queries.
``residual_queries``: queries made from that layer's un-normalised input."""


@dataclass(frozen=True)
class ModelFacts:
    """The numbers of a model that a method may check itself against.

    ``attention_layers``: 0-based decoder layers with attention, after which a second stage may
    follow. In hybrid models the others are recurrent: nothing there can be scored.
    """

    model_type: str
    num_layers: int
    attention_layers: tuple[int, ...]  # the others keep a recurrent state


@dataclass(frozen=True)
class ImageSignals:
    """The new images of one prefill in the order of their tokens in the batch, then its videos.

    To ``draft`` and ``stage1_scores`` as they were encoded; to ``select`` once for each batch row
    that holds them, where beam search or ``num_return_sequences`` repeats prompts.
    """

    entropy: Tensor  # f32 [n], nats, images concatenated
    sizes: tuple[int, ...]  # visual tokens of each image, sum = n
    offsets: Tensor  # i32 [I + 1]
    edges: Tensor | None = None  # f32 [n], gray levels; where the method needs them


@dataclass(frozen=True)
class Draft:
    """Device results of the first look, before anything is known on the host."""

    median: Tensor  # f32 [I], nats
    level: Tensor  # i32 [I], 0 = most complex
    count: Tensor  # i32 [I], stage-1 tokens to keep


@dataclass(frozen=True)
class ImagePlan:
    """One image or video on the host: ``median`` in nats, ``level`` (0 = most complex).

    ``count`` of its ``size`` candidate tokens pass stage 1; ``row`` is its batch row.
    """

    median: float
    level: int
    count: int
    size: int
    row: int
    modality: Literal["image", "video"] = "image"


@dataclass(frozen=True)
class RowPlan:
    """One batch row: prune to ``final`` visual tokens after ``layer`` (None: no second stage)."""

    layer: int | None
    final: int


@dataclass(frozen=True)
class LayerSignals:
    """What the scoring of a layer sees; index tensors as in ``text_to_vision_scores``."""

    query: Tensor  # [B, H, S, d]
    key: Tensor  # [B, Hk, L, d]
    rows: Tensor  # i32 [R], text tokens, indices into S, ascending in each batch row
    row_offsets: Tensor  # i32 [B + 1]
    columns: Tensor  # i32 [C], candidate visual tokens, indices into L
    column_offsets: Tensor  # i32 [B + 1]
    key_mask: Tensor | None  # bool [B, L]
    scale: float


@runtime_checkable
class Method(Protocol):
    """A pruning method. Implementations are frozen dataclasses, one file each."""

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals that the method reads; of the others only entropies are captured.

        Those of the cells are captured for every method: reports hold them.
        """
        ...

    @property
    def force_gathers(self) -> bool:
        """Gather also where nothing is dropped (to test that gathering itself changes nothing)."""
        ...

    def validate(self, model: ModelFacts) -> None:
        """Raise ValueError where the method cannot run on this model."""
        ...

    def draft(self, images: ImageSignals) -> Draft:
        """Device work before the language model; must not read anything on the host."""
        ...

    def decide(self, images: Sequence[ImagePlan], batch: int) -> tuple[RowPlan, ...]:
        """Layer and final count of every batch row, from host values only."""
        ...

    def stage1_scores(self, images: ImageSignals, draft: Draft) -> Tensor | None:
        """What ``select`` ranks cells by, f32 [n]; None: their entropies. ``draft``: of the same.

        Called once in a prefill: ``select`` and the report get the result. Must not read anything
        on the host.
        """
        ...

    def select(
        self, images: ImageSignals, counts: Sequence[int], scores: Tensor | None
    ) -> SegmentedTopK:
        """Stage-1 cells of each image, ascending, local to the image; ``scores``: see above."""
        ...

    def score(self, layer: LayerSignals) -> Tensor:
        """Importance of each column, f32 [C]; higher is kept, ties go to the lowest index."""
        ...

    def replace(self, **fields: Any) -> Method:
        """A validated copy with some fields changed."""
        ...
