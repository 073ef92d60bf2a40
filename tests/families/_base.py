"""A tiny model of one family with prompts for it, and the truth about its pictures beside them.

Nothing of the packages under test is used: cells, candidates and placeholders are worked out again
here, from the uint8 images that the stock processors resize.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from erase.demo_assets import load_tokenizer
from tests.hf.place import DEVICE, put
from tests.models import initialise, special_ids, text_config
from tests.oracle_choices import Picture
from tests.prompts import ANSWER, SYSTEM, Prompt

IDS = special_ids()
SPECIAL = max(IDS.values()) + 1
"""Ids below are special; greedy decoding never emits one."""


class TinyFamily:
    """One family. Subclasses say how it is built, and what its processor makes of images.

    Attributes:
        name: ``config.model_type``, also the test id.
        released: whether ``query="released"`` exists for it.
        mrope: whether positions have three axes.
        settings: fields of the method in which the test matrix differs for it, such as thresholds
            that put photographs and pages of its cells into different levels.
        broken: call styles that raise in the stock model too.
    """

    name: str
    released = False
    mrope = False
    settings: Mapping[str, Any] = MappingProxyType({})
    broken: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.name

    # -- to be said by each family -------------------------------------------------------------

    def config(self, text: dict[str, Any]) -> Any:
        """Configuration of a tiny model; ``text`` are settings of its text tower."""
        raise NotImplementedError

    def model_class(self) -> Any:
        """The stock class."""
        raise NotImplementedError

    def text(self) -> dict[str, Any]:
        """Settings of the text tower: a plain decoder, six layers, grouped-query attention."""
        return text_config(mrope=self.mrope)

    def pictures(self, images: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[Picture]]:
        """The stock processor's tensors, and what each image is made of."""
        raise NotImplementedError

    def batch(self, rows: list[list[np.ndarray]]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        """``pictures`` of all rows, for processors that must know the rows."""
        return self.pictures([image for row in rows for image in row])

    def slot(self, picture: Picture) -> list[int]:
        """Ids of one image in the prompt."""
        pad = [IDS["image_token_id"]] * len(picture.candidates)
        return [IDS["vision_start_token_id"], *pad, IDS["vision_end_token_id"]]

    def token_types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Further inputs that go with the ids."""
        return {}

    # -- models --------------------------------------------------------------------------------

    def build(self, attention: str = "sdpa", seed: int = 7, **text: Any) -> Any:
        """A fresh fp32 model on the device in eval mode."""
        config = self.config({**self.text(), **text})
        config._attn_implementation = attention
        model = self.model_class()._from_config(config, attn_implementation=attention)
        model = model.float().eval()
        initialise(model, seed)
        with torch.no_grad():
            model.get_output_embeddings().weight[:SPECIAL] = 0.0
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model.requires_grad_(False).to(DEVICE)

    def model(self, attention: str = "sdpa") -> Any:
        """One model per attention for the whole run; tests leave it as they found it."""
        return _shared(self, attention)

    # -- prompts -------------------------------------------------------------------------------

    def encode(self, rows: list[list[Any]], head: str = SYSTEM, tail: str = ANSWER) -> Prompt:
        """Left-padded batch: each row is a list of texts and uint8 images [H, W, 3]."""
        images = [[part for part in row if isinstance(part, np.ndarray)] for row in rows]
        tensors, truths = self.batch(images) if any(images) else ({}, [])
        left = iter(truths)
        encoded = [self._row(row, head, tail, left) for row in rows]
        width = max(map(len, encoded))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in encoded])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
        inputs = {"input_ids": ids, "attention_mask": mask, **tensors, **self.token_types(ids)}
        return Prompt(put(inputs), truths)

    def _row(self, row: list[Any], head: str, tail: str, truths: Any) -> list[int]:
        tokenizer = load_tokenizer()
        ids = list(tokenizer(head).input_ids)
        for part in row:
            if isinstance(part, str):
                ids += tokenizer(part).input_ids
            else:
                ids += self.slot(next(truths))
        return ids + list(tokenizer(tail).input_ids)

    # -- positions that a stock model needs given ------------------------------------------------

    def decode_positions(self, model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Positions of the newest token of a hand-written loop."""
        return {"position_ids": mask.sum(-1, keepdim=True) - 1}

    def later_images(self, model: Any, joined: dict, prompts: list[Prompt]) -> dict[str, Any]:
        """What a later turn with an image needs beside ids and mask.

        ``joined``: ids and mask of the whole conversation; ``prompts``: all turns so far.
        """
        own = ("input_ids", "attention_mask", "mm_token_type_ids")
        return {k: v for k, v in prompts[-1].inputs.items() if k not in own}


@functools.cache
def _shared(family: TinyFamily, attention: str) -> Any:
    return family.build(attention)


def packed(entropies: list[np.ndarray], candidates: list[list[bool]]) -> list[Picture]:
    """Pictures out of entropies of their cells and flags of their placeholders."""
    return [Picture(e, c) for e, c in zip(entropies, candidates, strict=True)]
