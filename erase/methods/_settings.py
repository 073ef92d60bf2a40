"""What ``EraseConfig.for_model`` needs to know and to say about presets and models."""

from __future__ import annotations

import os
import warnings
from typing import Any

from erase.methods._models import cell_side, configuration, text_facts
from erase.methods.presets import Preset, find_preset, known_presets, preset_name

PRESET_FIELDS = ("entropy_thresholds", "stage1_keep_ratios")
"""What a preset gives."""


def named_preset(name: str) -> Preset:
    """The preset that ``transfer_from`` names.

    Raises:
        TypeError: not a string.
        ValueError: no such preset.
    """
    if not isinstance(name, str):
        raise TypeError(f"transfer_from: expected a preset's name, got {type(name).__name__}")
    preset = find_preset(name)
    if preset is None:
        raise ValueError(f"transfer_from: no preset {name!r}; known: {known_presets()}")
    return preset


def describe_missing(model: Any, wanted: list[str]) -> str:
    """Why ``model`` has no settings, what to pass, and which presets have cells of its size."""
    cell = None
    if isinstance(model, (str, os.PathLike)):
        kind = repr(os.fspath(model))
    else:
        config = configuration(model)
        cell, (layers, width) = cell_side(config), text_facts(config)
        kind = f"{config.model_type!r} with {layers} layers of width {width}"
    if cell is None:
        hint = "they compare between visual tokens of equal size only"
    else:
        of_size = known_presets(cell) or "none"
        hint = f"presets for visual tokens of {cell} x {cell} pixels, as this model's: {of_size}"
    return (
        f"model: no published setting for {kind}; known: {known_presets()}. "
        f"Pass {' and '.join(f'{name}=' for name in wanted)}, or transfer_from= and a preset's "
        f"name to take its thresholds ({hint})"
    )


def warn_of_cells(preset: Preset, model: Any) -> None:
    """UserWarning where the preset's cells have another size than the model's, if that is known."""
    if isinstance(model, (str, os.PathLike)):
        own = find_preset(model)
        cell = None if own is None else own.cell
    else:
        cell = cell_side(configuration(model))
    if cell in (None, preset.cell):
        return
    of_size = known_presets(cell) or "none"
    warnings.warn(
        f"transfer_from: the thresholds of {preset_name(preset)} are entropies of cells of "
        f"{preset.cell} x {preset.cell} pixels, but visual tokens of this model cover {cell} x "
        f"{cell}: a larger cell holds more gray levels, so levels will not mean the same. Presets "
        f"for {cell} x {cell}: {of_size}; or pass entropy_thresholds= of your own",
        UserWarning,
        stacklevel=3,
    )


def depth_of(model: Any) -> tuple[str, int]:
    """(model type, decoder layers) of the model itself, else of its preset.

    Raises:
        ValueError: a name without a preset, or a configuration without a depth.
    """
    if not isinstance(model, (str, os.PathLike)):
        config = configuration(model)
        layers, _ = text_facts(config)
        if layers is None:
            raise ValueError(
                f"model: {type(config).__name__} does not say how many decoder layers there are; "
                "pass early_layer= and late_layer="
            )
        return config.model_type, layers
    own = find_preset(model)
    if own is None:
        raise ValueError(
            f"model: {os.fspath(model)!r} has no preset, so its depth is unknown; pass the model "
            "or its config, or early_layer= and late_layer="
        )
    return own.model_type, own.num_layers
