"""Presets against the paper, and the rule of layers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import erase
from erase.methods import PRESETS
from erase.methods.presets import preset_with
from tests.model_configs import MODELS, THRESHOLDS, make_config

TABLE_13 = """
Qwen2.5-VL-7B 1.69/1.35/1.17 17.32/24.86/50.53/59.66
Qwen2.5-VL-3B 2.06/1.41/0.89 11.34/16.79/55.80/61.28
Qwen3-VL-8B   1.61/0.22/0.06 15.50/22.37/24.26/80.60
Qwen3-VL-4B   4.92/0.64/0.55 17.88/20.66/54.21/74.67
InternVL3-8B  3.98/0.70/0.59 15.86/23.88/30.68/67.58
"""
"""As printed: model, thresholds, pruned shares in percent."""


# -- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("line", TABLE_13.split("\n")[1:-1])
def test_values_are_the_printed_ones(line: str) -> None:
    """Rounded to two decimals; one threshold of Qwen3-VL-8B is printed cut off."""
    name, thresholds, pruned = line.split()
    preset = PRESETS[name]
    for exact, printed in zip(preset.entropy_thresholds, thresholds.split("/"), strict=True):
        cut_off = (name, printed) == ("Qwen3-VL-8B", "0.22")
        assert (str(exact)[:4] if cut_off else f"{exact:.2f}") == printed
    for kept, printed in zip(preset.stage1_keep_ratios, pruned.split("/"), strict=True):
        assert f"{100 * (1 - kept):.2f}" == printed


def test_all_models_of_the_table_have_a_preset() -> None:
    assert [line.split()[0] for line in TABLE_13.strip().split("\n")] == list(PRESETS)


def test_qwen3_8b_is_in_full_precision() -> None:
    preset = PRESETS["Qwen3-VL-8B"]
    assert preset.entropy_thresholds == (
        1.6102664561128828,
        0.2269265653651543,
        0.05622356759744964,
    )
    assert preset.stage1_keep_ratios == (
        0.8450338604820039,
        0.7763170296713962,
        0.7573556106689442,
        0.19399401785935438,
    )


def test_resolutions() -> None:
    """28 and 32 pixels per token; qwen-vl-utils: at least 4, at most 16384 tokens."""
    sizes = {name: preset.cell for name, preset in PRESETS.items()}
    assert sizes == {name: cell for name, (_, _, _, cell) in MODELS.items()}
    texts = {name: str(preset.resolution) for name, preset in PRESETS.items()}
    assert texts == {
        "Qwen2.5-VL-7B": "1003520 to 12845056 pixels",
        "Qwen2.5-VL-3B": "1003520 to 12845056 pixels",
        "Qwen3-VL-8B": "4096 to 16777216 pixels",
        "Qwen3-VL-4B": "4096 to 16777216 pixels",
        "InternVL3-8B": "1 to 12 tiles of 448 x 448 pixels and a thumbnail",
    }


def test_thresholds_tell_the_preset() -> None:
    for preset in PRESETS.values():
        assert preset_with(preset.entropy_thresholds) is preset
    assert preset_with((3.0, 2.0, 1.0)) is None


# -- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_the_presets(name: str) -> None:
    """The paper's second (Qwen3: fourth) layer and the published code's 16 or 21, 0-based."""
    config = erase.EraseConfig.for_model(name)
    assert config.early_layer == (3 if name.startswith("Qwen3") else 1)
    assert config.late_layer == (16 if MODELS[name][1] <= 30 else 21)


@pytest.mark.parametrize(
    ("kind", "layers", "expected"),
    [
        ("qwen2_vl", 28, (1, 16)),
        ("qwen2_5_vl", 80, (1, 48)),
        ("qwen3_vl", 28, (3, 16)),
        ("qwen3_vl", 64, (3, 38)),
        ("qwen3_vl_moe", 48, (3, 28)),
        ("qwen3_5", 32, (1, 19)),
        ("internvl", 36, (1, 21)),
        ("llava", 32, (1, 19)),
        ("llava", 40, (1, 24)),
        ("llava_next", 32, (1, 19)),
        ("llava_onevision", 28, (1, 16)),
        ("glm4v", 40, (1, 24)),
        ("mistral3", 40, (1, 24)),
        ("qwen2_vl", 6, (1, 3)),
    ],
)
def test_layers_of_any_model(kind: str, layers: int, expected: tuple[int, int]) -> None:
    """60% of the depth, rounded down; a family needs no entry."""
    config = erase.EraseConfig.for_model(make_config(kind, layers), **THRESHOLDS)
    assert (config.early_layer, config.late_layer) == expected


def test_layers_of_a_type_nobody_knows() -> None:
    text = SimpleNamespace(num_hidden_layers=10, hidden_size=8)
    unknown = SimpleNamespace(model_type="brand_new_vl", get_text_config=lambda: text)
    config = erase.EraseConfig.for_model(unknown, **THRESHOLDS)
    assert (config.early_layer, config.late_layer) == (1, 6)
    del text.num_hidden_layers
    with pytest.raises(ValueError, match=r"model: SimpleNamespace does not say .* early_layer="):
        erase.EraseConfig.for_model(unknown, **THRESHOLDS)
    assert erase.EraseConfig.for_model(unknown, **THRESHOLDS, early_layer=1, late_layer=2)


# -- the page ------------------------------------------------------------------------------------


def test_table_of_the_page() -> None:
    """docs/presets.md holds these rows, and no others."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "presets.md").read_text()
    expected = []
    for name, preset in PRESETS.items():
        config = erase.EraseConfig.for_model(name)
        cells = (
            f"`{name}`",
            f"`{preset.model}`",
            ", ".join(f"{value:.5g}" for value in preset.entropy_thresholds),
            ", ".join(f"{value:.4f}" for value in preset.stage1_keep_ratios),
            f"{preset.num_layers} x {preset.hidden_size}",
            f"{config.early_layer}, {config.late_layer}",
            f"{preset.cell} x {preset.cell}",
            str(preset.resolution),
        )
        expected.append(f"| {' | '.join(cells)} |")
    found = [line for line in page.splitlines() if re.match(r"\| `\S+` \| `\S+/", line)]
    assert found == expected, "\n".join(expected)
