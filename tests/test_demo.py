"""The demo: its pictures, its model, and that what it reports is what happened."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import erase
from erase.demo import DemoResult, DemoSettings, build_model, builtin_pictures, run_picture
from erase.demo.operators import OPERATORS
from erase.demo_assets import load_processor, load_tokenizer
from erase.methods import PRESETS
from erase.tables import printable
from tests.hf.common import snapshot
from tests.oracle_choices import choose_image

CPU = torch.device("cpu")
SMALL = {"min_tokens": 90, "max_tokens": 130, "prefill_runs": 1}
NEW_TOKENS = 3


@functools.cache
def model() -> Qwen2_5_VLForConditionalGeneration:
    return build_model(0, CPU)


@functools.cache
def result(index: int, keep: float = 0.15) -> DemoResult:
    settings = DemoSettings(keep=keep, max_new_tokens=NEW_TOKENS, **SMALL)
    return run_picture(model(), builtin_pictures()[index], settings)


# -- pictures and model ------------------------------------------------------------------------


def test_pictures_are_a_photograph_and_a_page() -> None:
    photograph, page = (np.asarray(picture.image) for picture in builtin_pictures())
    assert photograph.shape == (427, 640, 3)
    assert len(np.unique(photograph.reshape(-1, 3), axis=0)) > 10_000
    assert page.shape == (191, 384, 3)
    assert np.array_equal(page[..., 0], page[..., 2])
    assert (page == 255).mean() > 0.6  # white paper
    assert 0.03 < (page < 100).mean() < 0.2  # ink


@pytest.mark.parametrize(("index", "layer"), [(0, 16), (1, 1)])
def test_full_size_pictures_prune_at_different_layers(index: int, layer: int) -> None:
    settings = DemoSettings()
    method = erase.EraseConfig.for_model("Qwen2.5-VL-7B", keep_ratio=settings.keep)
    resized = erase.inspection.resize(builtin_pictures()[index].image, settings.image_processor())
    chosen = choose_image(method, resized.numpy())
    assert 2000 <= len(chosen.entropy) <= 2500
    late = chosen.level < method.num_complex_levels
    assert (method.late_layer if late else method.early_layer) == layer


def test_model_is_stock_deep_and_seeded() -> None:
    assert type(model()) is Qwen2_5_VLForConditionalGeneration
    assert len(model().model.language_model.layers) == PRESETS["Qwen2.5-VL-7B"].num_layers
    again, other = build_model(0, CPU).state_dict(), build_model(1, CPU).state_dict()
    own = model().state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert not torch.equal(own["lm_head.weight"], other["lm_head.weight"])


# -- one picture -------------------------------------------------------------------------------


def generated(index: int, keep: float | None) -> list[int]:
    """The same prompt through plain transformers calls."""
    picture = builtin_pictures()[index]
    processor = load_processor(DemoSettings(**SMALL).image_processor())
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|><|image_pad|><|vision_end|>{picture.question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = processor(images=[picture.image], text=[text], return_tensors="pt")
    options = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "suppress_tokens": list(range(8)),
    }
    if keep is None:
        output = model().generate(**inputs, **options)
    else:
        method = erase.EraseConfig.for_model(
            model(), transfer_from="Qwen2.5-VL-7B", keep_ratio=keep
        )
        with erase.prune(model(), method, processor=processor):
            output = model().generate(**inputs, **options)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("index", [0, 1])
def test_both_sides_say_what_plain_calls_say(index: int) -> None:
    shown = result(index)
    assert shown.unpruned.tokens == generated(index, None)
    assert shown.pruned.tokens == generated(index, 0.15)
    assert shown.unpruned.text == load_tokenizer().decode(shown.unpruned.tokens)
    assert len(shown.pruned.tokens) == NEW_TOKENS
    assert not set(shown.pruned.tokens + shown.unpruned.tokens) & set(range(8))


@pytest.mark.parametrize("index", [0, 1])
def test_kept_cells_are_the_reports_and_nested(index: int) -> None:
    shown = result(index)
    row = shown.report.rows[0]
    chosen = choose_image(shown.method, shown.image.numpy())
    assert row.images[0].kept.tolist() == chosen.kept
    final = shown.final_cells.tolist()
    assert len(final) == int(len(chosen.entropy) * 0.15)
    assert set(final) < set(chosen.kept)
    assert final == sorted(final)
    assert row.layer is not None
    assert set(shown.report.backends.values()) == {"native"}


@pytest.mark.parametrize("index", [0, 1])
def test_bytes_are_those_of_the_cache(index: int) -> None:
    shown = result(index)
    left, right, claimed = shown.unpruned, shown.pruned, shown.report.kv_bytes
    assert len(left.kv_bytes) == len(right.kv_bytes) == NEW_TOKENS
    text = model().config.text_config
    head = text.hidden_size // text.num_attention_heads
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4
    assert left.kv_bytes[0] == claimed.before == slot * shown.prompt_tokens
    assert left.kv_bytes[1] == slot * (shown.prompt_tokens + 1)
    dropped = shown.report.rows[0].visual_tokens - len(shown.final_cells)
    assert right.kv_bytes[0] == claimed.after_prefill == slot * (shown.prompt_tokens - dropped)
    assert right.kv_bytes[1] == claimed.after_first_decode == right.kv_bytes[0] + slot


def test_times_are_of_every_operator_and_side() -> None:
    shown = result(0)
    assert {entry.operator for entry in shown.operators} == set(OPERATORS)
    row = shown.report.rows[0]
    size, kept = len(row.images[0].entropy), len(row.images[0].kept)
    assert [e.what for e in shown.operators if e.operator == "segmented_topk"] == [
        f"stage 1: {kept} of {size}",
        f"stage 2: {len(shown.final_cells)} of {kept}",
    ]
    assert all(entry.seconds > 0 and entry.backend == "native" for entry in shown.operators)
    for side in (shown.unpruned, shown.pruned):
        assert len(side.prefills) == len(side.visions) == 1
        assert 0 < side.vision < side.prefill
        assert side.language == pytest.approx(side.prefill - side.vision)


def test_keeping_everything_changes_nothing() -> None:
    shown = result(0, keep=1.0)
    assert shown.pruned.tokens == shown.unpruned.tokens
    assert shown.pruned.kv_bytes == shown.unpruned.kv_bytes
    assert shown.report.rows[0].layer is None
    names = {entry.operator for entry in shown.operators}
    assert names == {
        "patch_entropy",
        "patch_entropy_from_pixels",
        "complexity_plan",
        "segmented_topk",
    }


def test_the_model_is_left_as_it_was() -> None:
    before = snapshot(model())
    settings = DemoSettings(max_new_tokens=1, **SMALL)
    steps: list[str] = []
    shown = run_picture(model(), builtin_pictures()[1], settings, steps.append)
    assert snapshot(model()) == before
    assert len(steps) == settings.steps
    assert len(shown.pruned.kv_bytes) == 1  # one token needs no decode step


def test_a_busy_machine_times_fewer_prefills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erase.demo.run.TIMING_BUDGET", 0.0)
    settings = DemoSettings(max_new_tokens=1, **(SMALL | {"prefill_runs": 3}))
    shown = run_picture(model(), builtin_pictures()[1], settings)
    assert len(shown.unpruned.prefills) == len(shown.pruned.prefills) == 1


def test_printable_disarms_control_characters() -> None:
    assert printable("a\x07b\n\x1b[31mc\N{REPLACEMENT CHARACTER}") == (
        "a·b··[31mc\N{REPLACEMENT CHARACTER}"
    )
