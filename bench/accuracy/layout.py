"""The prompt as token ids and positions, for training sequences with several questions.

One question is exactly what the chat template makes of an image and its text; further questions
about the same image follow as further turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bench.accuracy.samples import Sample
from erase.demo_assets import load_tokenizer

HEADER = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ANSWER_HEADER = "<|im_end|>\n<|im_start|>assistant\n"
NEXT_TURN = "\n<|im_start|>user\n"
END = "<|im_end|>"
ANSWER_TOKENS = 3
"""Two digits and the end of the turn."""


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(load_tokenizer()(text)["input_ids"])


def conversation(sample: Sample, asked: Sequence[int], cells: int) -> tuple[list[int], list[int]]:
    """(token ids, positions from which the answers' tokens are predicted).

    Args:
        asked: which labels are asked for, one turn each, answers included.
        cells: visual tokens of the image.
    """
    image = _ids("<|vision_start|>") + _ids("<|image_pad|>") * cells + _ids("<|vision_end|>")
    ids = [*_ids(HEADER), *image]
    predicting: list[int] = []
    for turn, index in enumerate(asked):
        label = sample.labels[index]
        ids += _ids(NEXT_TURN) if turn else ()
        ids += _ids(f"{label.key}?") + _ids(ANSWER_HEADER)
        predicting += range(len(ids) - 1, len(ids) - 1 + ANSWER_TOKENS)
        ids += _ids(label.value) + _ids(END)
    return ids, predicting


def first_cell() -> int:
    """Position of the first visual token."""
    return len(_ids(HEADER)) + 1


def rotary_positions(grid: tuple[int, int], length: int) -> Tensor:
    """M-RoPE positions, i64 [3, length]: time, row, column of every token of such a prompt."""
    rows, columns = grid
    first, cells = first_cell(), rows * columns
    before = torch.arange(first).expand(3, -1)
    row = torch.arange(rows).repeat_interleave(columns)
    image = torch.stack(
        [torch.zeros(cells, dtype=torch.long), row, torch.arange(columns).repeat(rows)]
    )
    after = torch.arange(length - first - cells).expand(3, -1) + first + max(grid)
    return torch.cat([before, image + first, after], dim=1)
