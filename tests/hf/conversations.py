"""Batches, turns and films for any tiny family with M-RoPE positions, and a way to run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.families._base import IDS, TinyFamily
from tests.hf.calls import Outcome, generate_into
from tests.hf.cases import NEXT_USER
from tests.oracle_choices import Picture
from tests.prompts import Prompt, noise, page, photo

ROWS = [
    [photo(5, 6), "Describe the image."],
    ["Compare: ", page(6, 7), " and ", page(3, 4, seed=3), " What is the difference?"],
    ["How many?"],
    [page(5, 5, seed=5), noise(2, 3), " Answer with yes or no."],
]
"""Rows of four lengths; stage 2 follows layers 3, 1, none and 3."""


def ragged(family: TinyFamily) -> list[Prompt]:
    return [family.encode(ROWS)]


def text_turn(family: TinyFamily) -> list[Prompt]:
    first = family.encode(ROWS[:2])
    return [first, family.encode([["Thank you."]] * 2, head=NEXT_USER)]


def image_turns(family: TinyFamily) -> list[Prompt]:
    """Rows of one length whose later images leave different numbers of tokens."""
    later = [[page(4, 5, seed=2), " And this?"], [photo(4, 5, 20, 10), " And this?"]]
    return [
        family.encode(ROWS[:2]),
        family.encode(later, head=NEXT_USER),
        family.encode([["Thank you."]] * 2, head=NEXT_USER),
    ]


def padded_turn(family: TinyFamily) -> list[Prompt]:
    """A later turn with padding between the turns of a row."""
    later = [[page(4, 5, seed=2), " And this?"], ["Thank you. Summarise the page in one line."]]
    return [family.encode(ROWS[:2]), family.encode(later, head=NEXT_USER)]


def padded_text_turn(family: TinyFamily) -> list[Prompt]:
    later = [["And?"], ["Thank you. Summarise the page in one line."]]
    return [family.encode(ROWS[:2]), family.encode(later, head=NEXT_USER)]


def image_after_text(family: TinyFamily) -> list[Prompt]:
    first = family.encode([["Hello there."], ["Hi. What can you do for me?"]])
    return [first, family.encode(ROWS[:2], head=NEXT_USER)]


def turns(family: TinyFamily, model: Any, prompts: list[Prompt]) -> Outcome:
    """Greedy turns on one cache, with the whole conversation in ``input_ids``."""
    out = Outcome()
    sequence = generate_into(out, model, 4, **prompts[0].inputs)
    mask = prompts[0].inputs["attention_mask"]
    for turn, prompt in enumerate(prompts[1:], start=2):
        ids = torch.cat([sequence, prompt.inputs["input_ids"]], dim=1)
        answer = torch.ones_like(sequence[:, mask.shape[1] :])
        mask = torch.cat([mask, answer, prompt.inputs["attention_mask"]], dim=1)
        joined, extra = {"input_ids": ids, "attention_mask": mask}, {}
        if "pixel_values" in prompt.inputs:
            extra = family.later_images(model, joined, prompts[:turn])
            new = ids.shape[1] - (sequence.shape[1] - 1)
            extra["position_ids"] = extra["position_ids"][:, :, -new:]
        sequence = generate_into(out, model, 4, past_key_values=out.cache, **joined, **extra)
    return out


def filmed(family: TinyFamily, *parts: Any) -> tuple[Prompt, Picture]:
    """A video of two slices, runs of tokens behind their times, then ``parts``; and its truth."""
    frames = [photo(5, 6), page(5, 6)]
    prompt = family.encode([["Film: 0s ", frames[0], " 1s ", frames[1], " Now ", *parts]])
    tensors, pictures = family.pictures(frames)
    grid, patches = tensors["image_grid_thw"][0].tolist(), len(tensors["pixel_values"])
    entropy = np.concatenate([picture.entropy for picture in pictures])
    inputs, ids = dict(prompt.inputs), prompt.inputs["input_ids"]
    film = (ids == IDS["image_token_id"]).cumsum(1) <= len(entropy)
    film &= ids == IDS["image_token_id"]
    inputs["input_ids"] = ids.masked_fill(film, IDS["video_token_id"])
    inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"] + film.int()
    inputs["pixel_values_videos"] = inputs["pixel_values"][:patches]
    inputs["video_grid_thw"] = torch.tensor([[2, *grid[1:]]], device=ids.device)
    inputs["pixel_values"] = inputs["pixel_values"][patches:]
    inputs["image_grid_thw"] = inputs["image_grid_thw"][2:]
    if not len(inputs["pixel_values"]):
        del inputs["pixel_values"], inputs["image_grid_thw"]
    return Prompt(inputs, prompt.images[2:]), Picture(entropy, [True] * len(entropy))
