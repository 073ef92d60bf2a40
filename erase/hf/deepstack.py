"""DeepStack: visual features that early decoder layers add to their visual tokens.

The model passes a mask of the visual tokens and one ``[visual tokens, D]`` plane per layer. Both
follow the kept tokens: before the language model through its arguments, after a later gather
through the function that adds the planes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erase.hf.gather import int32, pack_index, take
from erase.hf.slots import Move
from erase.transfer import moved
from erase_kernels import compact_rows

MASK_ARGUMENT = "visual_pos_masks"
PLANES_ARGUMENT = "deepstack_visual_embeds"
PROCESS = "_deepstack_process"


class Deepstack:
    """Mask and planes of one prefill.

    Args:
        mask: bool [B, S], image and video tokens.
        planes: per early layer ``[visual tokens, D]``, in the order of the mask; at least one.
    """

    def __init__(self, mask: Tensor, planes: Sequence[Tensor]) -> None:
        self.mask, self.planes = mask, list(planes)
        self.moved = False  # since the model was given them
        self._added = 0

    @property
    def total(self) -> int:
        """Visual tokens that the planes have rows for."""
        return len(self.planes[0])

    def follow(self, move: Move, dropped: int) -> None:
        """Keep what a gather of the sequence keeps; ``dropped`` visual tokens go."""
        kept = self.total - dropped
        keep = (move.keep & self.mask).reshape(1, -1)
        rank = self.mask.reshape(-1).cumsum(0) - 1
        index = rank[pack_index(keep, kept)[0].to(torch.int64)].to(torch.int32)[None]
        self.mask = take(self.mask, move.index, move.counts)
        planes = []
        for plane in self.planes:
            where = moved(index, plane.device)
            # Planes may be on other devices than the sequence.
            planes += compact_rows([plane[None]], where, int32([kept], plane.device))
        self.planes = [plane[0] for plane in planes]
        self.moved = True

    @property
    def expects_more(self) -> bool:
        """Whether a layer to come adds a plane."""
        return self._added < len(self.planes)

    def next_plane(self, mask: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and plane that the layer which just ran adds, as given or as stage 2 left them."""
        number = self._added
        self._added += 1
        return (self.mask, self.planes[number]) if self.moved else (mask, plane)

    def arguments(self) -> dict[str, Any]:
        """What the language model is called with."""
        self.moved = False
        return {MASK_ARGUMENT: self.mask, PLANES_ARGUMENT: self.planes}


def with_kept_planes(
    process: Callable[..., Tensor], current: Callable[[], Any]
) -> Callable[..., Tensor]:
    """The model's function that adds a plane, given those of the tokens that are still there.

    Args:
        process: ``(hidden states, mask, plane) -> hidden states``.
        current: the open prefill of this thread, or None.
    """

    def deepstack_process(hidden: Tensor, mask: Tensor, plane: Tensor) -> Tensor:
        prefill = current()
        if prefill is None or prefill.deepstack is None:
            return process(hidden, mask, plane)
        mask, plane = prefill.deepstack.next_plane(mask, plane)
        return process(hidden, mask, plane)

    return deepstack_process
