"""The call styles of a Qwen vision-language model: one table for identity and oracle tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.hf.calls import (
    Outcome,
    direct,
    direct_labels,
    direct_loop,
    direct_loop_without_mask,
    forced_loop,
    greedy,
    keep_chosen_logits,
    keep_last_logits,
    sampled,
    turns_new_ids,
    turns_whole_ids,
)
from tests.models import EARLY_LAYER, LATE_LAYER
from tests.prompts import Prompt, Row, Video, encode, gradient, noise, page, photo

NEXT_USER = "<|im_end|>\n<|im_start|>user\n"
DESCRIBE = "Describe the image."

BASE_CONFIG: dict[str, Any] = {
    "keep_ratio": 0.25,
    "entropy_thresholds": (4.9, 3.0, 1.0),
    "stage1_keep_ratios": (0.85, 0.75, 0.6, 0.4),
    "early_layer": EARLY_LAYER,
    "late_layer": LATE_LAYER,
}
"""The thresholds put the test pictures into different levels: noise 0, photos 1, pages 3."""


@dataclass(frozen=True, eq=False)
class Case:
    """One call style.

    Attributes:
        name: test id.
        build: makes the prompts; called once per use, so a case never shares tensors.
        call: runs a model on the prompts.
        layers: the layer each row of each pruned prefill must choose (None: stage 2 does not run).
        config: fields that differ from ``BASE_CONFIG``.
        do_normalize: setting of the image processor.
        reference: what the oracle is asked instead of ``call``: another way to the same result.
        times: rows of the model for each row of the prompt (beams, samples).
        compiled: the call compiles; nothing may watch operators meanwhile.
    """

    name: str
    build: Callable[[], list[Prompt]]
    call: Callable[[Any, list[Prompt]], Outcome]
    layers: tuple[tuple[int | None, ...], ...]
    config: dict[str, Any] = field(default_factory=dict)
    do_normalize: bool = True
    reference: Callable[[Any, list[Prompt]], Outcome] | None = None
    times: int = 1
    compiled: bool = False

    def settings(self, **overrides: Any) -> dict[str, Any]:
        return {**BASE_CONFIG, **self.config, **overrides}


def _one(*parts: Any, **options: Any) -> Callable[[], list[Prompt]]:
    return lambda: [encode([list(parts)], **options)]


def _video(seed: int = 0) -> Video:
    return Video(np.stack([noise(2, 3, seed + t) for t in range(4)]))


def ragged_rows() -> list[Row]:
    """Several images in a row, none in another, and rows that prune at different layers."""
    return [
        [photo(5, 6), DESCRIBE],
        ["Compare: ", page(6, 7), " and ", page(3, 4, seed=3), " What is the difference?"],
        ["How many people are in the picture?"],
        [page(5, 5, seed=5), noise(2, 3), " Answer with yes or no."],
    ]


def _ragged() -> list[Prompt]:
    return [encode(ragged_rows())]


def _turn(*parts: Any) -> Prompt:
    return encode([list(parts)], head=NEXT_USER)


def _turns_text() -> list[Prompt]:
    return [encode([[photo(5, 6), DESCRIBE]]), _turn("Is the sky blue or grey?")]


def _turns_image() -> list[Prompt]:
    return [
        encode([[photo(5, 6), DESCRIBE]]),
        _turn("And this? ", page(6, 7), " Summarise."),
        _turn("Thank you."),
    ]


def _turns_ragged() -> list[Prompt]:
    first = encode([[photo(5, 6), DESCRIBE], [page(6, 7), "Read the text on the page, please."]])
    return [first, encode([["Thank you."]] * 2, head=NEXT_USER)]


def _turns_ragged_image() -> list[Prompt]:
    first = encode([[photo(5, 6), DESCRIBE], [page(6, 7), "Read the text on the page, please."]])
    second = [[page(4, 5, seed=2), " And this?"], [photo(4, 5, 20, 10), " And this?"]]
    return [first, encode(second, head=NEXT_USER)]


def _turns_inner_padding() -> list[Prompt]:
    first = encode([[photo(5, 6), DESCRIBE], [page(6, 7), "Read the text on the page, please."]])
    second = [[page(4, 5, seed=2), " And this?"], ["Thank you. Summarise the page in one line."]]
    return [first, encode(second, head=NEXT_USER)]


def _padded_row() -> list[Prompt]:
    """A single row that is padded on the left."""
    prompt = encode([[photo(5, 6), DESCRIBE]])
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        prompt.inputs[name] = torch.nn.functional.pad(prompt.inputs[name], (4, 0), value=value)
    return [prompt]


def right_padded(prompt: Prompt) -> Prompt:
    """The same batch, as training pads it."""
    inputs = dict(prompt.inputs)
    shifts = (inputs["attention_mask"] == 0).sum(1).tolist()
    for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & inputs.keys():
        rows = zip(inputs[name], shifts, strict=True)
        inputs[name] = torch.stack([row.roll(-shift) for row, shift in rows])
    return Prompt(inputs, prompt.images)


def _right_padded() -> list[Prompt]:
    return [right_padded(_ragged()[0])]


def _turn_after_text() -> list[Prompt]:
    return [encode([["Hello there."]]), _turn(photo(5, 6), DESCRIBE)]


def _masked_image() -> list[Prompt]:
    """The last image is hidden by the mask, as if it were padding."""
    prompt = encode([[photo(5, 6), DESCRIBE], [page(6, 7), " and ", photo(3, 4), DESCRIBE]])
    image = (prompt.inputs["mm_token_type_ids"][1] == 1).nonzero()[:, 0]
    prompt.inputs["attention_mask"][1, image[6 * 7 :]] = 0
    return [prompt]


def _half(dtype: torch.dtype) -> Callable[[], list[Prompt]]:
    def build() -> list[Prompt]:
        prompt = encode([[photo(5, 6), DESCRIBE]])
        prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].to(dtype)
        return [prompt]

    return build


E, L = EARLY_LAYER, LATE_LAYER

CASES: tuple[Case, ...] = (
    Case("greedy_photo", _one(photo(5, 6), DESCRIBE), greedy, ((L,),)),
    Case("greedy_page", _one(page(6, 7), DESCRIBE), greedy, ((E,),)),
    Case("greedy_resized", _one(photo(7, 9)[:170, :237], DESCRIBE), greedy, ((L,),)),
    Case("sampled", _one(photo(5, 6), DESCRIBE), sampled, ((L,),)),
    Case("ragged_batch", _ragged, greedy, ((L, E, None, L),)),
    Case("ragged_sampled", _ragged, sampled, ((L, E, None, L),)),
    Case("two_images", _one(page(6, 7), photo(4, 5), DESCRIBE), greedy, ((L,),)),
    Case("image_first", _one(photo(5, 6), DESCRIBE, head=""), greedy, ((L,),)),
    Case("image_between", _one("Look at this: ", page(6, 7), " now say."), greedy, ((E,),)),
    Case("image_last", _one("What is this? ", page(6, 7), tail=""), greedy, ((E,),)),
    Case("turns_text", _turns_text, turns_whole_ids, ((L,),)),
    Case("turns_text_new_ids", _turns_text, turns_new_ids, ((L,),)),
    Case("turns_image", _turns_image, turns_whole_ids, ((L,), (E,))),
    Case("turns_image_new_ids", _turns_image, turns_new_ids, ((L,), (E,))),
    Case("turns_ragged", _turns_ragged, turns_whole_ids, ((L, E),)),
    Case("turns_ragged_image", _turns_ragged_image, turns_whole_ids, ((L, E), (E, L))),
    Case("turns_inner_padding", _turns_inner_padding, turns_whole_ids, ((L, E), (E, None))),
    Case("padded_row", _padded_row, greedy, ((L,),)),
    Case("direct_right_padded", _right_padded, direct, ((L, E, None, L),)),
    Case("labels_right_padded", _right_padded, direct_labels, ((L, E, None, L),)),
    Case("masked_image", _masked_image, forced_loop, ((L, E),)),
    Case("turn_after_text", _turn_after_text, turns_whole_ids, ((L,),)),
    Case(
        "videos_and_image",
        _one("A: ", _video(), " B: ", photo(4, 5), " C: ", _video(4), " Summarise."),
        greedy,
        ((L,),),
    ),
    Case("direct", _one(photo(5, 6), DESCRIBE), direct, ((L,),)),
    Case("direct_batch", _ragged, direct, ((L, E, None, L),)),
    Case("direct_loop", _one(page(6, 7), DESCRIBE), direct_loop, ((E,),)),
    Case("direct_loop_batch", _ragged, direct_loop, ((L, E, None, L),)),
    Case("direct_loop_no_mask", _one(photo(5, 6), DESCRIBE), direct_loop_without_mask, ((L,),)),
    Case("labels", _one(photo(5, 6), DESCRIBE), direct_labels, ((L,),)),
    Case("labels_batch", _ragged, direct_labels, ((L, E, None, L),)),
    Case("logits_to_keep_int", _one(photo(5, 6), DESCRIBE), keep_last_logits, ((L,),)),
    Case("logits_to_keep_tensor", _one(photo(5, 6), DESCRIBE), keep_chosen_logits, ((L,),)),
    Case(
        "not_normalized",
        _one(photo(5, 6), DESCRIBE, do_normalize=False),
        greedy,
        ((L,),),
        do_normalize=False,
    ),
    Case("pixels_fp16", _half(torch.float16), greedy, ((L,),)),
    Case("pixels_bf16", _half(torch.bfloat16), greedy, ((L,),)),
)

CONFIG_CASES: tuple[Case, ...] = (
    Case("stage1_only", _one(photo(5, 6), DESCRIBE), greedy, ((None,),), {"stage2": False}),
    Case("stage2_only", _one(page(6, 7), DESCRIBE), greedy, ((E,),), {"stage1": False}),
    Case("no_budget", _ragged, greedy, ((None,) * 4,), {"keep_ratio": None}),
    Case("nothing_left", _one(photo(5, 6), DESCRIBE), greedy, ((L,),), {"keep_ratio": 0.03}),
    Case("budget_met", _one(page(6, 7), DESCRIBE), greedy, ((None,),), {"keep_ratio": 0.5}),
    Case("budget_met_in_one_row", _ragged, greedy, ((L, None, None, L),), {"keep_ratio": 0.5}),
    Case("complex_levels", _one(photo(5, 6), DESCRIBE), greedy, ((E,),), {"complex_levels": 1}),
    Case("layer_zero", _one(page(6, 7), DESCRIBE), greedy, ((0,),), {"early_layer": 0}),
    Case("last_layer", _ragged, greedy, ((5, E, None, 5),), {"late_layer": 5}),
    Case(
        "same_layer", _ragged, direct_loop, ((2, 2, None, 2),), {"early_layer": 2, "late_layer": 2}
    ),
    Case(
        "two_thresholds",
        _one(gradient(5, 6), DESCRIBE),
        greedy,
        ((L,),),
        {"entropy_thresholds": (4.9, 1.5), "stage1_keep_ratios": (0.8, 0.7, 0.5)},
    ),
)


def by_name(name: str) -> Case:
    return next(case for case in (*CASES, *CONFIG_CASES) if case.name == name)
