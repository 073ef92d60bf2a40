"""Parity with the published ERASE code, recorded in ``tests/data/golden`` (its README says how)."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import erase
from tests.hf.common import ERRORS_APART
from tests.hf.place import BACKEND, DEVICE, ON_GPU, put
from tests.prompts import CLIP_MEAN, CLIP_STD, TEMPORAL, image_to_cells

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NEW_TOKENS = 8
ENTROPY_TOLERANCE = 1e-5  # the published code adds 1e-10 to every bin
SCORE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Recording:
    """One family: where its files are, and what the published code assumes of it."""

    folder: Path
    config_class: Any
    model_class: Any
    patch: int  # pixels along a side of a patch
    mean: tuple[float, ...]
    std: tuple[float, ...]
    early_layer: int
    late_layer: int


RECORDINGS = {
    "qwen2_5_vl": Recording(
        GOLDEN,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        patch=14,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        early_layer=1,
        late_layer=16,
    ),
    "qwen3_vl": Recording(
        GOLDEN / "qwen3_vl",
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        patch=16,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        early_layer=3,
        late_layer=21,
    ),
}
Case = tuple[str, str]  # family, file
CASES: tuple[Case, ...] = (
    *(("qwen2_5_vl", name) for name in ("china_r25", "mid1_r25", "page_r25", "two_mixed_r25")),
    *(("qwen3_vl", name) for name in ("china_r25", "page_r25", "two_mixed_r25_DSFIX")),
)


@functools.cache
def model(family: str) -> Any:
    recording = RECORDINGS[family]
    config = recording.config_class(**json.loads((recording.folder / "config.json").read_text()))
    built = recording.model_class._from_config(config, attn_implementation="sdpa")
    built.load_state_dict(load_file(recording.folder / "weights.safetensors"))
    return built.float().eval().requires_grad_(False).to(DEVICE)


def pixel_values(image: torch.Tensor, recording: Recording) -> torch.Tensor:
    """The processor's tensor of one resized image [3, H, W], both temporal halves."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (recording.mean, recording.std))
    levels = (image.float() / 255 - mean) / std
    cells = torch.from_numpy(image_to_cells(levels.numpy(), recording.patch).copy())
    return cells[:, :, None].expand(-1, -1, TEMPORAL, -1, -1).reshape(len(cells), -1)


@functools.cache
def recorded(case: Case) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(settings, recorded tensors, model inputs)."""
    family, name = case
    recording = RECORDINGS[family]
    settings = json.loads((recording.folder / f"{name}.json").read_text())
    tensors = load_file(recording.folder / f"{name}.safetensors")
    images = load_file(recording.folder / "images.safetensors")
    pixels = [pixel_values(images[image], recording) for image in settings["inputs"]]
    ids = tensors["input_ids"].long()
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model(family).config.image_token_id).int(),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": tensors["image_grid_thw"].long(),
    }
    assert int(inputs["image_grid_thw"].prod(-1).sum()) == len(inputs["pixel_values"])
    return settings, tensors, put(inputs)


def generate(family: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [1, 8], logits [8, vocabulary]) of a greedy run."""
    out = model(family).generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, -NEW_TOKENS:].cpu(), torch.cat(out.logits).cpu()


@functools.cache
def tolerance(case: Case) -> float:
    """Of logits, keys and values; not below what fp32 costs the unpruned model on a GPU."""
    if not ON_GPU:
        return LOGIT_TOLERANCE
    stock, inputs = model(case[0]), recorded(case)[2]
    with torch.no_grad():
        single = stock(**inputs).logits[:, -1].double()
        double = copy.deepcopy(stock).double()(**inputs).logits[:, -1]
    return max(LOGIT_TOLERANCE, ERRORS_APART * float((single - double).abs().max()))


def run(case: Case) -> tuple[erase.Session, torch.Tensor, torch.Tensor]:
    settings, _, inputs = recorded(case)
    recording = RECORDINGS[case[0]]
    config = erase.EraseConfig(
        keep_ratio=settings["final_ratio"],
        entropy_thresholds=tuple(settings["entropy_thresholds"]),
        stage1_keep_ratios=tuple(settings["stage1_retain"]),
        early_layer=recording.early_layer,
        late_layer=recording.late_layer,
        query="released",
    )
    with erase.prune(model(case[0]), config) as session:
        tokens, logits = generate(case[0], inputs)
    return session, tokens, logits


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_unpruned_model_reproduces_the_recording(case: Case) -> None:
    _, tensors, inputs = recorded(case)
    tokens, logits = generate(case[0], inputs)
    assert torch.equal(tokens, tensors["base.gen_tokens"].long())
    torch.testing.assert_close(
        logits[:1], tensors["base.last_logits"], rtol=0, atol=tolerance(case)
    )


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_stage1(case: Case) -> None:
    settings, tensors, _ = recorded(case)
    row = run(case)[0].report.rows[0]
    assert len(row.images) == len(settings["images"])
    for i, (got, want) in enumerate(zip(row.images, settings["images"], strict=True)):
        np.testing.assert_allclose(
            got.entropy.cpu().numpy(),
            tensors[f"s1.{i}.entropies"].numpy(),
            rtol=0,
            atol=ENTROPY_TOLERANCE,
        )
        assert got.median == pytest.approx(want["median"], abs=ENTROPY_TOLERANCE)
        assert got.level == want["level"]
        assert got.kept.tolist() == sorted(tensors[f"s1.{i}.topk_indices"].tolist())


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_stage2(case: Case) -> None:
    settings, tensors, _ = recorded(case)
    session, _, _ = run(case)
    row = session.report.rows[0]
    assert row.layer == settings["prune_layer"]
    # Recorded in order of entropy and by position after stage 1; compare by original position.
    original = tensors["s1.retain_indices"].long()[tensors["s2.vision_idx"].long()]
    order = original.argsort()
    assert row.candidates.tolist() == original[order].tolist()
    np.testing.assert_allclose(
        row.scores.cpu().numpy(), tensors["s2.importance"][order].numpy(), rtol=SCORE_TOLERANCE
    )
    assert row.kept.tolist() == tensors["s2.kept_original_pos_sorted"].tolist()
    assert session.report.kv_lengths == settings["kv_len_per_layer"]
    assert set(session.report.backends.values()) == {BACKEND}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_cache_and_decoding(case: Case) -> None:
    settings, tensors, inputs = recorded(case)
    session, tokens, logits = run(case)
    assert tokens.tolist() == [settings["gen"]["tokens"]]
    assert torch.equal(tokens, tensors["gen.tokens"].long())
    torch.testing.assert_close(logits, tensors["gen.logits"], rtol=0, atol=tolerance(case))
    torch.testing.assert_close(
        logits[:1], tensors["prefill.last_logits"], rtol=0, atol=tolerance(case)
    )
    pruned = model(case[0])
    with erase.prune(pruned, session.method), torch.no_grad():
        cache = pruned(**inputs).past_key_values
    for name in (n for n in tensors if n.startswith("kv.")):
        _, layer, kind = name.split(".")
        got = getattr(cache.layers[int(layer)], "keys" if kind == "key" else "values")
        torch.testing.assert_close(got.cpu(), tensors[name], rtol=0, atol=tolerance(case))
