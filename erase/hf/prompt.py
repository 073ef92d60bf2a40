"""The tokens of a prompt: where its placeholders stand, and which encoded images they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erase.hf.architecture import Architecture
from erase.hf.families import Encoded
from erase.hf.ownership import Stream, join_tiles
from erase.hf.signals import PIXELS, Modality
from erase.transfer import moved


@dataclass(frozen=True)
class Prompt:
    """What the vision-language model was called with: one of the two is None."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None

    def without_last(self, tokens: int) -> Prompt:
        """The prompt before its last ``tokens``."""
        ids, embeds = (
            None if given is None else given[:, : given.shape[1] - tokens]
            for given in (self.input_ids, self.inputs_embeds)
        )
        return Prompt(ids, embeds)

    def placeholders(
        self, architecture: Architecture, token_id: int | None, device: torch.device
    ) -> Tensor:
        """Where the prompt has this token: bool [B, S] on ``device``."""
        given: Any = self.inputs_embeds if self.input_ids is None else self.input_ids
        if token_id is None:
            return torch.zeros(given.shape[:2], dtype=torch.bool, device=device)
        if self.input_ids is not None:
            return torch.eq(moved(self.input_ids, device), token_id)
        # As the models themselves recognise them: by their embedding.
        one = torch.full((1,), token_id, dtype=torch.int64, device=given.device)
        embedding = architecture.base.get_input_embeddings()(one)
        return moved((given == moved(embedding, given.device)).all(-1), device)

    def streams(
        self,
        architecture: Architecture,
        encoded: Mapping[Modality, tuple[Encoded, ...]],
        device: torch.device,
    ) -> tuple[list[Stream], Tensor, Tensor]:
        """What is to be pruned, all other placeholders, and all of them (bool [B, S])."""
        places: dict[Modality, Tensor] = {
            "image": self.placeholders(architecture, architecture.image_token_id, device),
            "video": self.placeholders(architecture, architecture.video_token_id, device),
        }
        streams, unpruned = [], torch.zeros_like(places["image"])
        for modality, mask in places.items():
            held = encoded.get(modality)
            if held is None:
                unpruned = unpruned | mask
                continue
            if architecture.family.joins_tiles:
                held = join_tiles(held, mask)
            streams.append(Stream(modality, held, mask))
        return streams, unpruned, places["image"] | places["video"]


def brought(call: Mapping[str, Any], videos: bool) -> dict[Modality, Any]:
    """What a call brings that is to be pruned: encoder output, None where pixels came."""
    outputs = call.get("mm_encoder_outputs") or {}
    return {
        modality: outputs.get(modality)
        for modality, name in PIXELS.items()
        if (videos or modality == "image")
        and (outputs.get(modality) is not None or call.get(name) is not None)
    }
