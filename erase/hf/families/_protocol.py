"""What the integration must be told about a model family; one adapter file implements it.

Everything that is not said here is generic. An adapter derives from ``Family`` and overrides what
differs from a plain decoder (one row of positions, one token per cell, no published code).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from erase_kernels import PixelLayout

Measure = Callable[[Tensor, PixelLayout], Tensor]
"""What is measured in each cell: f32 [cells] of pixels and where the cells lie in them.
``patch_entropy_from_pixels`` and ``patch_edges_from_pixels`` are such."""

UINT8_SCALE = 255.0
"""Processors map levels 0..255 to 0..1 unless ``do_rescale`` is off or the factor is changed."""
MOST_LEVEL = 255
BF16_SIGNIFICANT_BITS = 8
HALF_LEVEL = 0.499
"""Less a little for the rounding of fp32 arithmetic."""


@dataclass(frozen=True)
class Statistics:
    """How a processor normalised pixels: ``value = (level / scale - mean) / std`` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = UINT8_SCALE

    @property
    def exact_in_bfloat16(self) -> bool:
        """Whether rounding to bf16 moves no value by half a gray level (a bound, by spacing)."""
        highest = MOST_LEVEL / self.scale
        for mean, std in zip(self.mean, self.std, strict=True):
            largest = max(mean, highest - mean) / std
            # Powers of two are exact: what counts is the spacing right below the largest value.
            _, exponent = math.frexp(math.nextafter(largest, 0.0))
            spacing = 2.0 ** (exponent - BF16_SIGNIFICANT_BITS)
            if spacing / 2 * std * self.scale >= HALF_LEVEL:
                return False
        return True


@dataclass(frozen=True)
class Encoded:
    """One image, video or tile, as the language model gets it.

    ``entropy``: f32 [cells] nats, one per candidate token in the order of the tokens.
    ``candidates``: bool [tokens] on the CPU, False at placeholder tokens without a cell (newlines),
    which are always kept and never counted; None: every token is a candidate.
    ``edges``: f32 [cells] gray levels, aligned with ``entropy``; None: not asked for.
    """

    entropy: Tensor
    candidates: Tensor | None = None
    edges: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Placeholder tokens in the prompt."""
        return len(self.entropy) if self.candidates is None else len(self.candidates)


def one_token_per_cell(entropy: Tensor, features: Any) -> list[Encoded]:
    """Cells and tokens correspond one to one; ValueError where their numbers differ."""
    sizes = [len(part) for part in features]
    if sum(sizes) != len(entropy):
        raise ValueError(
            f"pixel_values: {len(entropy)} cells were found, but the encoder made {sum(sizes)} "
            "tokens; the image sizes or grids do not describe these pixels"
        )
    return [Encoded(part) for part in torch.split(entropy, sizes)]


class Family:
    """Base of all adapters.

    Attributes:
        model_types: ``config.model_type`` values.
        pixel_mean, pixel_std: usual statistics of the family's image processor, used where no
            processor is given.
        joins_tiles: the encoder's output is per tile, and the tiles of one image are one run of
            placeholder tokens in the prompt.
        prunes_video: ``video_cells`` is implemented.
        videos_are_images: the processor hands over the frames of a video as images, and nothing
            tells them apart: they are pruned like images.
        videos_use_image_tokens: the prompt's placeholders do not tell videos from images.
        released_skip: text tokens that the published code leaves out of its queries; None where no
            code was published, so that ``query="released"`` is refused.
        released_from_output: whether the published queries are made of a layer's output instead of
            its input.
    """

    model_types: tuple[str, ...] = ()
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    joins_tiles = False
    prunes_video = False
    videos_are_images = False
    videos_use_image_tokens = False
    released_skip: int | None = None
    released_from_output = False

    def usual_statistics(self, config: Any) -> Statistics:
        """Statistics where no processor is given; ``config`` is the model's."""
        return Statistics(self.pixel_mean, self.pixel_std)

    def check_processor(self, image_processor: Any, config: Any) -> None:
        """ValueError where the processor's cells are not the model's."""

    def read(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The call as ``cells`` and ``tokens`` get it: what they need on the host is read once."""
        return call

    def cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """``measure`` of every cell in ``pixel_values``, before the encoder runs: f32 [cells].

        Args:
            base: the vision-language model.
            statistics: of the processor.
            call: arguments of ``get_image_features``, defaults filled in.
            measure: called once for each tensor of pixels; entropies always, edges where the
                method asks for them.
        """
        raise NotImplementedError

    def video_cells(
        self, base: Any, statistics: Statistics, call: Mapping[str, Any], measure: Measure
    ) -> Tensor:
        """As ``cells``, for the arguments of ``get_video_features``."""
        raise NotImplementedError

    def tokens(
        self, base: Any, call: Mapping[str, Any], entropy: Tensor, features: Any
    ) -> list[Encoded]:
        """Which cell each token of the encoder's output stands for; here: one after the other.

        Where a method asks for edges, they are laid out by another call, in the entropies' place.

        Args:
            base: the vision-language model.
            call: arguments of ``get_image_features``, defaults filled in.
            entropy: what ``cells`` returned, of whichever measure.
            features: ``pooler_output`` of the encoder: a sequence of ``[tokens, D]``.
        """
        return one_token_per_cell(entropy, features)

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Positions to gather from, ``[..., B, S]``: as given, or those the model would make."""
        if position_ids is None:
            return torch.arange(past, past + length, device=device).expand(batch, length)
        return position_ids.expand(batch, length)

    def residual_query(
        self, attention: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Rotated queries ``[B, H, S, d]`` as the published code makes them.

        Args:
            attention: self-attention of the scored layer.
            hidden: ``[B, S, D]``, residual stream before or after that layer.
            position_embeddings: cosine and sine tables that the layer got.
        """
        raise NotImplementedError
