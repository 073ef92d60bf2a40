"""``pipeline("image-text-to-text")`` on a pruned model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

import erase
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import assert_reports, limits
from tests.hf.place import DEVICE
from tests.models import FAMILIES, shared_model
from tests.oracle import Oracle
from tests.prompts import chat_processor, page, photo, resized_uint8

PICTURES = [photo(5, 6), page(6, 7)]


def run(family: str, attention: str) -> list[str]:
    """Texts the pipeline makes of two conversations, one after the other."""
    pipe: Any = pipeline(
        "image-text-to-text",
        model=shared_model(family, attention),
        processor=chat_processor(),
        device=DEVICE,
    )
    texts = []
    for picture in PICTURES:
        content = [
            {"type": "image", "image": Image.fromarray(picture)},
            {"type": "text", "text": "Describe the image."},
        ]
        messages = [{"role": "user", "content": content}]
        options = {"do_sample": False, "max_new_tokens": 8}
        out = pipe(text=messages, generate_kwargs=options, return_full_text=False)
        texts.append(out[0]["generated_text"])
    return texts


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline(family: str, attention: str) -> None:
    stock = run(family, attention)
    config = erase.EraseConfig(**BASE_CONFIG)
    masked = shared_model(family, "eager")
    with torch.no_grad(), Oracle(masked, config, resized_uint8(PICTURES)) as oracle:
        wanted = run(family, "eager")
    assert [turn.rows[0].layer for turn in oracle.turns] == [3, 1]
    with erase.prune(shared_model(family, attention), config, chat_processor()) as session:
        got = run(family, attention)
    assert got == wanted
    assert all(a != b for a, b in zip(got, stock, strict=True))
    limit = limits(by_name("greedy_photo"), family)
    assert_reports(list(session.reports), oracle.turns, kv=True, limit=limit)
    assert run(family, attention) == stock


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_everything(family: str) -> None:
    stock = run(family, "sdpa")
    config = erase.EraseConfig(**{**BASE_CONFIG, "keep_ratio": 1.0, "force_gathers": True})
    with erase.prune(shared_model(family), config, chat_processor()) as session:
        assert run(family, "sdpa") == stock
    assert session.prefills_pruned == len(PICTURES)
