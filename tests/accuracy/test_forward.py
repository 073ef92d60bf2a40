"""The prompt and the forward that training uses are those of the stock processor and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.accuracy.forward import answer_logits, encode, patches, plan_for
from bench.accuracy.layout import ANSWER_TOKENS, conversation, first_cell, rotary_positions
from bench.accuracy.model import build_model, load_model, save_model
from bench.accuracy.samples import Sample, held_out
from erase.demo_assets import load_processor, load_tokenizer
from erase.inspection import image_processor

GRIDS = ((8, 8), (6, 11))
"""Whole attention windows, and windows that are smaller at the far edges."""


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(0).eval()


def stock_inputs(samples: list[Sample], turns: list[list[int]]) -> Any:
    processor = load_processor(image_processor(784, 4096 * 784))
    texts = []
    for sample, asked in zip(samples, turns, strict=True):
        messages: list[dict[str, Any]] = []
        for turn, index in enumerate(asked):
            label = sample.labels[index]
            image = [] if turn else [{"type": "image"}]
            question = [*image, {"type": "text", "text": f"{label.key}?"}]
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": label.value},
            ]
        texts.append(processor.apply_chat_template(messages, tokenize=False).rstrip("\n"))
    images = [Image.fromarray(sample.image) for sample in samples]
    return processor(text=texts, images=images, return_tensors="pt")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turns", [1, 3])
def test_prompt_and_logits(model: Any, grid: tuple[int, int], turns: int) -> None:
    samples = [held_out("calibration", i, grid) for i in range(2)]
    asked = [list(range(turns))] * 2
    made = [conversation(s, a, grid[0] * grid[1]) for s, a in zip(samples, asked, strict=True)]
    ids, predicting = torch.tensor([row for row, _ in made]), torch.tensor(made[0][1])
    inputs = stock_inputs(samples, asked)
    assert inputs["input_ids"].tolist() == ids.tolist()
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    stock = inputs["pixel_values"].reshape(2, -1, 3, 2, 196)
    assert patches(images).equal(stock[:, :, :, 0].flatten(2))
    assert patches(images).equal(stock[:, :, :, 1].flatten(2))
    with torch.no_grad():
        expected = model(**inputs).logits[:, predicting]
        visual = encode(model.model.visual, patches(images), plan_for(model.model.visual, grid))
        got = answer_logits(model, ids, visual, grid, predicting)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_predicted_tokens_are_the_answers() -> None:
    sample = held_out("calibration", 0, (8, 8))
    ids, predicting = conversation(sample, [2, 0], 64)
    assert len(predicting) == 2 * ANSWER_TOKENS
    said = [load_tokenizer().decode(ids[p + 1]) for p in predicting]
    wanted = [*sample.labels[2].value, "<|im_end|>", *sample.labels[0].value, "<|im_end|>"]
    assert said == wanted


def test_positions_are_the_stock_ones(model: Any) -> None:
    sample = held_out("calibration", 1, (6, 11))
    inputs = stock_inputs([sample], [[0]])
    ids = inputs["input_ids"]
    keywords = {"image_grid_thw": inputs["image_grid_thw"]}
    keywords["mm_token_type_ids"] = inputs["mm_token_type_ids"]
    stock, _ = model.model.get_rope_index(ids, **keywords)
    assert rotary_positions((6, 11), ids.shape[1]).tolist() == stock[:, 0].tolist()
    image_id = load_tokenizer().convert_tokens_to_ids("<|image_pad|>")
    assert ids[0].tolist().index(image_id) == first_cell()


def test_weights_are_seeded_and_stored_in_half_precision(model: Any, tmp_path: Any) -> None:
    again, other = build_model(0), build_model(1)
    key = "model.language_model.layers.3.mlp.up_proj.weight"
    assert model.state_dict()[key].equal(again.state_dict()[key])
    assert not model.state_dict()[key].equal(other.state_dict()[key])
    save_model(model, tmp_path)
    assert model.state_dict()[key].dtype == torch.float32  # the model itself is left as it was
    loaded = load_model(tmp_path)
    assert not loaded.training
    assert loaded.state_dict()[key].equal(model.state_dict()[key].half().float())


def test_missing_weights(tmp_path: Any) -> None:
    with pytest.raises(OSError, match="none"):
        load_model(tmp_path / "none")
