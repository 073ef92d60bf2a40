"""What the integration must be told about a model family; one adapter file implements it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from erase_kernels import PixelLayout


class Family(Protocol):
    """One model family. Everything that is not said here is generic."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """``config.model_type`` values."""
        ...

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Usual mean of the family's image processor, used where no processor is given."""
        ...

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Usual standard deviation, likewise."""
        ...

    @property
    def skipped_text_tokens(self) -> int:
        """Text tokens that the published code leaves out of its queries (``query="released"``)."""
        ...

    def pixel_layout(
        self, config: Any, mean: tuple[float, ...], std: tuple[float, ...], scale: float
    ) -> PixelLayout:
        """Where the cells of ``pixel_values`` lie."""
        ...

    def full_positions(
        self, position_ids: Tensor | None, batch: int, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Positions to gather from, ``[..., B, S]``: as given, or those the model would make."""
        ...

    def residual_query(
        self,
        attention: nn.Module,
        hidden: Tensor,  # [B, S, D], un-normalised input of the layer
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Rotated queries ``[B, H, S, d]`` as the published code makes them."""
        ...
