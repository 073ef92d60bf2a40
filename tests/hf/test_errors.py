"""Bad input and everything that is refused: a clear error before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import erase
from erase_kernels import check_status
from tests.hf.cases import BASE_CONFIG
from tests.hf.common import snapshot
from tests.hf.place import DEVICE
from tests.models import TEXT_LAYERS, build_model, shared_model
from tests.prompts import Prompt, chat_processor, encode, image_processor, photo

GREEDY = {"max_new_tokens": 3, "do_sample": False}


def config(**fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **fields})


def prompt(**options: Any) -> Prompt:
    return encode([[photo(5, 6), "Describe the image."]], **options)


@pytest.fixture
def model() -> Iterator[Any]:
    """The shared model; whatever a test does to it, it must be as before afterwards."""
    shared = shared_model("qwen2_5_vl")
    before = snapshot(shared)
    yield shared
    assert snapshot(shared) == before


# -- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "name"),
    [
        ({"keep_ratio": 0.0}, ValueError, "keep_ratio"),
        ({"keep_ratio": -0.5}, ValueError, "keep_ratio"),
        ({"keep_ratio": 1.01}, ValueError, "keep_ratio"),
        ({"keep_ratio": float("nan")}, ValueError, "keep_ratio"),
        ({"keep_ratio": "0.5"}, TypeError, "keep_ratio"),
        ({"entropy_thresholds": (1.0, 2.0, 3.0)}, ValueError, "entropy_thresholds"),
        ({"entropy_thresholds": (3.0, 3.0, 1.0)}, ValueError, "entropy_thresholds"),
        ({"entropy_thresholds": (3.0, float("nan"), 1.0)}, ValueError, "entropy_thresholds"),
        ({"entropy_thresholds": (3.0, 1.0)}, ValueError, "stage1_keep_ratios"),
        ({"stage1_keep_ratios": (0.9, 0.8, 0.7)}, ValueError, "stage1_keep_ratios"),
        ({"stage1_keep_ratios": (0.9, 0.8, 0.7, 0.0)}, ValueError, "stage1_keep_ratios"),
        ({"stage1_keep_ratios": (1.2, 0.8, 0.7, 0.5)}, ValueError, "stage1_keep_ratios"),
        ({"stage1_keep_ratios": (0.9, 0.8, 0.7, None)}, TypeError, "stage1_keep_ratios"),
        ({"early_layer": -1}, ValueError, "early_layer"),
        ({"early_layer": 1.0}, TypeError, "early_layer"),
        ({"late_layer": True}, TypeError, "late_layer"),
        ({"complex_levels": 5}, ValueError, "complex_levels"),
        ({"complex_levels": -1}, ValueError, "complex_levels"),
        ({"query": "approximate"}, ValueError, "query"),
        ({"stage1": 1}, TypeError, "stage1"),
    ],
)
def test_configuration(fields: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        config(**fields)


def test_unknown_field() -> None:
    with pytest.raises(TypeError, match="keep"):
        config().replace(keep=0.5)
    with pytest.raises(ValueError, match="keep"):
        erase.EraseConfig.from_json('{"keep": 0.5}')


# -- installing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["early_layer", "late_layer"])
def test_layer_the_model_does_not_have(model: Any, name: str) -> None:
    layers = {"early_layer": TEXT_LAYERS, "late_layer": TEXT_LAYERS, name: TEXT_LAYERS}
    if name == "late_layer":
        layers["early_layer"] = 0
    with pytest.raises(ValueError, match=name):
        erase.prune(model, config(**layers))


def test_installing_twice(model: Any) -> None:
    with erase.prune(model, config()):
        during = snapshot(model)
        with pytest.raises(ValueError, match="model"):
            erase.prune(model, config(keep_ratio=0.5))
        with pytest.raises(ValueError, match="model"):
            erase.prune(model.model, config())
        assert snapshot(model) == during
    with erase.prune(model, config()) as session:  # free again
        assert not session.closed


class WithoutScores:
    """A method but for two members of the protocol."""

    needs: frozenset = frozenset()
    force_gathers = False
    validate = draft = decide = select = replace = staticmethod(lambda *args: None)


def test_methods_that_lack_members(model: Any) -> None:
    expected = "method: expected a pruning method such as EraseConfig, got"
    with pytest.raises(TypeError) as refused:
        erase.prune(model, WithoutScores())
    missing = str(refused.value).removeprefix(f"{expected} WithoutScores without ")
    assert sorted(missing.split(", ")) == ["score", "stage1_scores"]
    with pytest.raises(TypeError) as refused:
        erase.prune(model, 0.5)
    assert str(refused.value) == f"{expected} float"


def test_wrong_objects(model: Any) -> None:
    with pytest.raises(TypeError, match="method"):
        erase.prune(model, {"keep_ratio": 0.5})
    with pytest.raises(TypeError, match="model"):
        erase.prune("Qwen/Qwen2.5-VL-7B-Instruct", config())
    with pytest.raises(TypeError, match="processor"):
        erase.prune(model, config(), processor=chat_processor().tokenizer)
    with pytest.raises(ValueError, match="keep_reports"):
        erase.prune(model, config(), keep_reports=0)


def test_processor_of_another_patch_size(model: Any) -> None:
    other = copy.copy(image_processor())
    other.patch_size = 16
    with pytest.raises(ValueError, match="patch_size"):
        erase.prune(model, config(), processor=other)


def test_text_model() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises((TypeError, ValueError), match="model"):
        erase.prune(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), config())


def test_sliding_window_layers() -> None:
    sliding = build_model(
        "qwen2_5_vl", use_sliding_window=True, sliding_window=16, max_window_layers=3
    )
    assert "sliding_attention" in sliding.config.text_config.layer_types
    before = snapshot(sliding)
    with pytest.raises(ValueError, match="sliding"):
        erase.prune(sliding, config())
    assert snapshot(sliding) == before


def offloaded_cache() -> DynamicCache:
    """As ``DynamicCache(offloading=True)``, which needs a working accelerator to be made."""
    cache = DynamicCache()
    cache.offloading = True
    return cache


# -- calls that are refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"use_cache": False}, "use_cache"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size"),
        ({"cache_implementation": "quantized"}, "quantized"),
        ({"cache_implementation": "offloaded"}, "offloaded"),
        ({"cache_implementation": "paged"}, "paged"),
        ({"generation_config": GenerationConfig(use_cache=False, max_new_tokens=2)}, "use_cache"),
        ({"past_key_values": offloaded_cache()}, "past_key_values"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_generate_refuses(model: Any, options: dict[str, Any], name: str) -> None:
    ran = []
    handle = model.model.language_model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with erase.prune(model, config()) as session, pytest.raises(ValueError, match=name):
            model.generate(**prompt().inputs, **{"max_new_tokens": 2, **options})
        assert session.prefills_seen == session.prefills_pruned == 0
    finally:
        handle.remove()
    assert ran == [], "refused only after generation had started"


def test_static_cache_in_a_second_turn(model: Any) -> None:
    cache = StaticCache(config=model.config, max_cache_len=128)

    def two_turns() -> None:
        first = model.generate(**prompt().inputs, **GREEDY, past_key_values=cache)
        ids = torch.cat([first, first[:, -2:]], dim=1)
        model.generate(input_ids=ids, **GREEDY, past_key_values=cache)

    with (
        erase.prune(model, config()),
        pytest.raises(ValueError, match="several turns"),
        torch.no_grad(),
    ):
        two_turns()


def test_image_tokens_without_pixels(model: Any) -> None:
    inputs = prompt().inputs
    encoded = {k: v for k, v in inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    with erase.prune(model, config()), pytest.raises(ValueError, match="pixel_values"):
        model(**encoded)


def test_image_embeddings_without_pixels(model: Any) -> None:
    """Embeddings made before the session carry no entropies."""
    inputs = prompt().inputs
    if "mm_encoder_outputs" not in model.model.forward.__wrapped__.__code__.co_varnames:
        pytest.skip("this transformers version has no mm_encoder_outputs")
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        features = model.model.get_image_features(pixels, inputs["image_grid_thw"])
    with erase.prune(model, config()), pytest.raises(ValueError, match="mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={"image": features})


def test_pixels_that_are_no_levels(model: Any) -> None:
    """Pixels of a processor without normalisation, but the session was told the usual one."""
    inputs = prompt(do_normalize=False).inputs
    with erase.prune(model, config()) as session:
        with pytest.raises(ValueError, match="pixel_values"):
            model.generate(**inputs, **GREEDY)
        model.generate(**prompt().inputs, **GREEDY)  # the session goes on
        assert session.prefills_pruned == 1


def test_too_few_image_tokens(model: Any) -> None:
    inputs = prompt().inputs
    inputs["input_ids"][inputs["input_ids"] == model.config.image_token_id] = 300
    with erase.prune(model, config()), pytest.raises(ValueError, match="token"):
        model(**inputs)


def answer(model: Any) -> None:
    """A pruned answer; the CPU raises at once what it finds wrong, a GPU when it is asked."""
    model.generate(**prompt().inputs, **GREEDY)
    check_status(DEVICE)


def test_scores_that_are_nan() -> None:
    broken = build_model("qwen2_5_vl")
    layer = BASE_CONFIG["late_layer"]
    broken.model.language_model.layers[layer].self_attn.q_proj.weight[3, 5] = float("nan")
    before = snapshot(broken)
    with pytest.raises(ValueError, match=r"quer|score"), erase.prune(broken, config()):
        answer(broken)
    assert snapshot(broken) == before


def test_checkpointing_that_replays_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older transformers wrap a layer's ``__call__``, hooks included, in the checkpoint."""
    training = build_model("qwen2_5_vl").train()
    layer_class = type(training.model.language_model.layers[0])
    monkeypatch.setattr(layer_class, "__call__", lambda *args, **kwargs: None, raising=False)
    for layer in training.model.language_model.layers:
        layer.gradient_checkpointing = True
    with erase.prune(training, config()), pytest.raises(ValueError, match="checkpointing"):
        training(**prompt().inputs)
    for layer in training.model.language_model.layers:
        layer.gradient_checkpointing = False
