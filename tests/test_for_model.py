"""``EraseConfig.for_model``: which models it recognises, what it says about the others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

import erase
from erase.methods import PRESETS, find_preset
from erase.methods._models import cell_side
from tests.model_configs import MODELS, THRESHOLDS, make_config
from tests.models import build_model

# -- recognition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_configurations_are_recognised(name: str) -> None:
    kind, layers, width, _ = MODELS[name]
    config = make_config(kind, layers, width)
    assert find_preset(config) is PRESETS[name]
    assert erase.EraseConfig.for_model(config) == erase.EraseConfig.for_model(name)
    for other in (make_config(kind, layers + 1, width), make_config(kind, layers, width + 64)):
        assert find_preset(other) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B"),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "Qwen2.5-VL-7B"),
        ("unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit", "Qwen2.5-VL-7B"),
        ("qwen2.5-vl-3b", "Qwen2.5-VL-3B"),
        ("Qwen/Qwen3-VL-8B-Thinking", "Qwen3-VL-8B"),
        ("Qwen/Qwen3-VL-4B-Instruct-FP8", "Qwen3-VL-4B"),
        ("OpenGVLab/InternVL3-8B-hf", "InternVL3-8B"),
        ("OpenGVLab/InternVL3-8B", "InternVL3-8B"),
        ("someone/my_Qwen3-VL-8B_tuned", "Qwen3-VL-8B"),
        ("/models/Qwen3-VL-8B-Instruct/", "Qwen3-VL-8B"),
        (Path("/models/InternVL3-8B-hf"), "InternVL3-8B"),
        (r"C:\models\Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-3B"),
        ("/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc594898137f", "Qwen2.5-VL-7B"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", None),
        ("Qwen/Qwen2-VL-7B-Instruct", None),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", None),
        ("Qwen/Qwen3-VL-Embedding-8B", None),
        ("OpenGVLab/InternVL3_5-8B-HF", None),
        ("OpenGVLab/InternVL3-78B-hf", None),
        ("someone/NotQwen3-VL-8B", None),
        ("someone/Qwen3-VL-8B-from-Qwen3-VL-4B", None),
        ("Qwen2.5-VL-7B-Instruct/another-model", None),
        ("", None),
    ],
)
def test_names(name: str | Path, expected: str | None) -> None:
    assert find_preset(name) is (None if expected is None else PRESETS[expected])


class Adapter(torch.nn.Module):
    """As PEFT's models: the pruned model is some levels down, and has no attribute of theirs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = torch.nn.ModuleDict({"model": model})

    def get_base_model(self) -> torch.nn.Module:
        return self.base_model["model"]


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, Adapter, lambda model: torch.compile(Adapter(model))],
    ids=["compiled", "adapter", "compiled adapter"],
)
def test_wrapped_models(wrap: Any) -> None:
    model = build_model("qwen2_vl")
    expected = erase.EraseConfig.for_model(model, transfer_from="Qwen2.5-VL-7B")
    assert expected.late_layer == 3
    assert erase.EraseConfig.for_model(wrap(model), transfer_from="Qwen2.5-VL-7B") == expected


@pytest.mark.parametrize("model", [None, 3, torch.nn.Linear(1, 1), {"model_type": "qwen2_vl"}])
def test_what_is_no_model(model: object) -> None:
    with pytest.raises(TypeError, match="model: expected a transformers model, its config or a"):
        erase.EraseConfig.for_model(model, **THRESHOLDS)


# -- models without a preset ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("qwen2_vl", 28),
        ("qwen2_5_vl", 28),
        ("qwen3_vl", 32),
        ("qwen3_vl_moe", 32),
        ("qwen3_5", 32),
        ("internvl", 28),
        ("glm4v", 28),
        ("mistral3", 28),
        ("aya_vision", 28),
        ("llava", 14),
        ("llava_next", 14),
        ("llava_onevision", 14),
        ("gemma3", None),
    ],
)
def test_cell_sizes(kind: str, cell: int | None) -> None:
    assert cell_side(CONFIG_MAPPING[kind]()) == cell


def test_error_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="entropy_thresholds= and stage1_keep_ratios=") as raised:
        erase.EraseConfig.for_model(make_config("qwen2_vl", 28))
    text = str(raised.value)
    assert "'qwen2_vl' with 28 layers of width 256" in text
    assert "transfer_from=" in text
    assert "28 x 28 pixels, as this model's: Qwen2.5-VL-7B, Qwen2.5-VL-3B, InternVL3-8B)" in text
    with pytest.raises(ValueError, match="14 x 14 pixels, as this model's: none"):
        erase.EraseConfig.for_model(make_config("llava", 32))
    with pytest.raises(ValueError, match="32 x 32 pixels, as this model's: Qwen3-VL-8B, Qwen3-VL"):
        erase.EraseConfig.for_model(make_config("qwen3_vl_moe", 48))
    with pytest.raises(ValueError, match="Pass stage1_keep_ratios=, or transfer_from="):
        erase.EraseConfig.for_model(make_config("llava", 32), entropy_thresholds=(1.0,))


def test_names_without_a_preset_have_no_depth() -> None:
    with pytest.raises(ValueError, match="'me/other' has no preset, so its depth is unknown"):
        erase.EraseConfig.for_model("me/other", **THRESHOLDS)
    config = erase.EraseConfig.for_model("me/other", **THRESHOLDS, early_layer=2, late_layer=5)
    assert (config.early_layer, config.late_layer) == (2, 5)


def test_bad_transfers() -> None:
    config = make_config("qwen2_vl", 28)
    with pytest.raises(ValueError, match=r"transfer_from: no preset 'LLaVA'; known: Qwen2\.5"):
        erase.EraseConfig.for_model(config, transfer_from="LLaVA")
    with pytest.raises(TypeError, match="transfer_from: expected a preset's name, got Preset"):
        erase.EraseConfig.for_model(config, transfer_from=PRESETS["Qwen2.5-VL-7B"])


@pytest.mark.parametrize("model", ["InternVL3-8B", make_config("internvl", 28, 3584)])
def test_transfer_of_the_papers_table_14(model: Any) -> None:
    """Equal cells, so nothing is said; the model's own preset does not mix in."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = erase.EraseConfig.for_model(model, transfer_from="Qwen2.5-VL-7B")
    assert config.entropy_thresholds == PRESETS["Qwen2.5-VL-7B"].entropy_thresholds
    assert config.stage1_keep_ratios == PRESETS["Qwen2.5-VL-7B"].stage1_keep_ratios
    assert (config.early_layer, config.late_layer) == (1, 16)


@pytest.mark.parametrize(
    ("model", "source", "words"),
    [
        (make_config("llava", 32), "Qwen2.5-VL-7B", "28 x 28 pixels, .* cover 14 x 14.*: none"),
        (make_config("qwen3_vl", 28), "InternVL3-8B", "cover 32 x 32.*: Qwen3-VL-8B, Qwen3-VL-4B"),
        ("Qwen2.5-VL-3B", "Qwen3-VL-4B", "32 x 32 pixels, .* cover 28 x 28"),
    ],
)
def test_transfer_between_cells_of_different_sizes(model: Any, source: str, words: str) -> None:
    said = f"transfer_from: the thresholds of {source}.*{words}"
    with pytest.warns(UserWarning, match=said) as caught:
        erase.EraseConfig.for_model(model, transfer_from=source)
    assert [record.filename for record in caught] == [__file__]


def test_no_warning_where_nothing_is_known_or_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erase.EraseConfig.for_model(make_config("gemma3", 26), transfer_from="Qwen2.5-VL-7B")
        erase.EraseConfig.for_model(
            make_config("llava", 32), transfer_from="Qwen2.5-VL-7B", **THRESHOLDS
        )


@pytest.mark.parametrize("kind", erase.supported_model_types())
def test_cells_of_every_family_are_known(kind: str) -> None:
    """So that a transfer between unequal cells is never silent."""
    assert cell_side(CONFIG_MAPPING[kind]()) is not None
