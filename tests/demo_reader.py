"""A stored reader for the tests of the demo: untrained, in the folder layout of a trained one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

import erase
from bench.accuracy.model import build_model, save_model
from erase.demo import Reader, Reading, check_reader, load_reader, read_picture, reading_pictures

CPU = torch.device("cpu")
KEEP = 0.15
METHOD = erase.EraseConfig(
    keep_ratio=None,
    entropy_thresholds=(2.9, 2.0),
    stage1_keep_ratios=(0.7, 0.55, 0.4),
    early_layer=1,
    late_layer=4,
)

_folder = functools.cache(tempfile.TemporaryDirectory)


@functools.cache
def stored() -> Path:
    """The folder; gone when the process ends."""
    path = Path(_folder().name)
    save_model(build_model(0), path)
    (path / "method.json").write_text(METHOD.to_json())
    return path


@functools.cache
def loaded() -> Reader:
    return load_reader(stored(), check_reader(stored(), KEEP), CPU)


@functools.cache
def readings() -> tuple[Reading, Reading]:
    """The page's and the photograph's."""
    page, photo = reading_pictures()
    return read_picture(loaded(), page), read_picture(loaded(), photo)
