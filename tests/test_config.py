"""``EraseConfig``: published presets, JSON, recognition of models, and its own arithmetic."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

import erase
from erase.methods import ImagePlan
from tests.models import build_model

SEVEN_B = "Qwen/Qwen2.5-VL-7B-Instruct"
SIZES = {SEVEN_B: (28, 3584, 28, 4), "Qwen/Qwen2.5-VL-3B-Instruct": (36, 2048, 16, 2)}
"""Layers, width, query heads and key heads of the published models."""

FIELDS = {
    "keep_ratio": 0.2,
    "entropy_thresholds": (3.0, 2.0, 1.0),
    "stage1_keep_ratios": (0.9, 0.8, 0.6, 0.3),
    "early_layer": 1,
    "late_layer": 3,
}


def model_config(name: str) -> Qwen2_5_VLConfig:
    layers, width, heads, key_heads = SIZES[name]
    text = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }
    return Qwen2_5_VLConfig(text_config=text)


def test_preset_7b() -> None:
    """Table 13 in the precision of the published launch script."""
    config = erase.EraseConfig.for_model(SEVEN_B, keep_ratio=0.15)
    assert config.keep_ratio == 0.15
    assert config.entropy_thresholds == (1.6904912034377264, 1.3471717001563197, 1.1718597959685415)
    assert config.stage1_keep_ratios == (
        0.8267523535511546,
        0.751410400727526,
        0.49466854974609853,
        0.4033912240039451,
    )
    assert (config.early_layer, config.late_layer) == (1, 16)
    assert (config.query, config.stage1, config.stage2) == ("exact", True, True)


def test_preset_3b() -> None:
    """Table 13 prints pruned shares: 11.34, 16.79, 55.80 and 61.28 percent."""
    config = erase.EraseConfig.for_model("Qwen2.5-VL-3B")
    assert config.keep_ratio is None
    assert config.entropy_thresholds == (2.06, 1.41, 0.89)
    pruned = [round(100 * (1 - ratio), 2) for ratio in config.stage1_keep_ratios]
    assert pruned == [11.34, 16.79, 55.80, 61.28]
    assert (config.early_layer, config.late_layer) == (1, 21)


@pytest.mark.parametrize("name", SIZES)
def test_same_preset_for_name_and_configuration(name: str) -> None:
    assert erase.EraseConfig.for_model(model_config(name)) == erase.EraseConfig.for_model(name)


def test_fields_override_the_preset() -> None:
    config = erase.EraseConfig.for_model(SEVEN_B, keep_ratio=0.5, late_layer=20, early_layer=2)
    assert (config.early_layer, config.late_layer, config.keep_ratio) == (2, 20, 0.5)


def test_model_without_a_preset() -> None:
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL-7B"):
        erase.EraseConfig.for_model("somebody/unknown-model")
    tiny = build_model("qwen2_vl")
    with pytest.raises(ValueError, match="model"):
        erase.EraseConfig.for_model(tiny)
    given_fields = {k: v for k, v in FIELDS.items() if not k.endswith("_layer")}
    config = erase.EraseConfig.for_model(tiny, **given_fields)
    assert (config.early_layer, config.late_layer) == (1, 3 * 6 // 5)


def test_transfer_of_thresholds() -> None:
    """Another model's thresholds, this model's depth."""
    config = erase.EraseConfig.for_model(Qwen2VLConfig(), transfer_from="Qwen2.5-VL-7B")
    assert config.entropy_thresholds == erase.PRESETS["Qwen2.5-VL-7B"].entropy_thresholds
    depth = Qwen2VLConfig().get_text_config().num_hidden_layers
    assert config.late_layer == 3 * depth // 5


def test_json_round_trip() -> None:
    config = erase.EraseConfig(**FIELDS, complex_levels=1, query="released", stage1=False)
    text = config.to_json()
    assert erase.EraseConfig.from_json(text) == config
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(config)}
    assert erase.EraseConfig.from_json(json.dumps(FIELDS)) == erase.EraseConfig(**FIELDS)


@pytest.mark.parametrize("text", ["[]", '"x"', "{}", json.dumps({**FIELDS, "late": 3})])
def test_bad_json(text: str) -> None:
    with pytest.raises(ValueError, match="text"):
        erase.EraseConfig.from_json(text)


def test_frozen() -> None:
    config = erase.EraseConfig(**FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.keep_ratio = 0.5
    assert config.replace(keep_ratio=0.5).keep_ratio == 0.5
    assert config.keep_ratio == 0.2
    assert hash(config) == hash(erase.EraseConfig(**FIELDS))


@pytest.mark.parametrize(("thresholds", "complex_levels"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_levels_that_prune_late(thresholds: int, complex_levels: int) -> None:
    """As the published code: m = 2 late, late, early; m = 4 late, late, late, early, early."""
    fields = {
        "entropy_thresholds": tuple(float(thresholds - i) for i in range(thresholds)),
        "stage1_keep_ratios": (0.5,) * (thresholds + 1),
    }
    config = erase.EraseConfig(**{**FIELDS, **fields})
    for level in range(thresholds + 1):
        (row,) = config.decide([ImagePlan(1.0, level, 50, 100, 0)], batch=1)
        assert row.layer == (3 if level < complex_levels else 1)


@given(
    size=st.integers(1, 20_000),
    ratio=st.floats(0.01, 1.0),
    entered=st.integers(0, 20_000),
)
def test_final_count(size: int, ratio: float, entered: int) -> None:
    """int(tokens * ratio) in double precision, never more than entered."""
    entered = min(size, entered)
    config = erase.EraseConfig(**{**FIELDS, "keep_ratio": ratio})
    (row,) = config.decide([ImagePlan(1.0, 0, entered, size, 0)], batch=1)
    assert row.final == min(int(size * ratio), entered)
    assert (row.layer is None) == (row.final == entered)
