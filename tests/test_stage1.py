"""Stage 1 of ``EraseConfig`` by other scores and with a spread, against the oracle's choice."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import erase
from erase.inspection import inspect_image
from erase.methods import PRESETS, EraseConfig, ImageSignals
from erase.methods._stage1 import spread_cells
from erase.methods.presets import PixelBounds
from erase_kernels.testing import record_ops
from tests.oracle_choices import Picture, best_cells, choose_image
from tests.prompts import page, photo
from tests.selection import same_bits
from tests.test_config import FIELDS

SMALL = PixelBounds(40 * 28**2, 60 * 28**2)
RULES = ("entropy", "deviation", "edges")


def config(**fields: Any) -> EraseConfig:
    return EraseConfig(**{**FIELDS, **fields})


def signals(pictures: list[Picture], edges: bool = True) -> ImageSignals:
    sizes = [len(picture.entropy) for picture in pictures]
    return ImageSignals(
        torch.from_numpy(np.concatenate([picture.entropy for picture in pictures])),
        tuple(sizes),
        torch.tensor([0, *accumulate(sizes)], dtype=torch.int32),
        torch.from_numpy(np.concatenate([p.edges for p in pictures])) if edges else None,
    )


def pictures(*sizes: int, steps: int = 40) -> list[Picture]:
    """Values with many ties."""
    generator = np.random.default_rng(sum(sizes))
    return [
        Picture(
            (generator.integers(0, steps, n) / 8).astype(np.float32),
            [True] * n,
            edges=(generator.integers(0, steps, n) * 5).astype(np.float32),
        )
        for n in sizes
    ]


def chosen(method: EraseConfig, images: list[Picture], edges: bool = True) -> list[list[int]]:
    given = signals(images, edges)
    draft = method.draft(given)
    picked = method.select(given, draft.count.tolist(), method.stage1_scores(given, draft))
    ends = picked.offsets.tolist()
    return [picked.indices[a:b].tolist() for a, b in pairwise(ends)]


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("rule", RULES)
def test_choice_of_several_images(rule: str, spread: float) -> None:
    method = config(stage1_score=rule, stage1_spread=spread)
    images = pictures(37, 1, 64, 2, 150)
    wants = [choose_image(method, picture) for picture in images]
    assert chosen(method, images) == [want.kept for want in wants]
    assert len({len(want.kept) for want in wants}) > 2


def test_reserved_cells_do_not_compete() -> None:
    """A reserved cell that is also the best leaves room for the best of the others."""
    (picture,) = pictures(20)
    method = config(stage1_score="edges", stage1_spread=0.5, stage1_keep_ratios=(0.4,) * 4)
    reserved = spread_cells(20)[:4]
    picture.edges[:] = np.arange(20)
    picture.edges[list(reserved)] = 250
    best = sorted(set(range(20)) - set(reserved))[-4:]
    assert chosen(method, [picture]) == [sorted([*reserved, *best])]
    picture.edges[list(reserved)] = 0
    best = sorted(set(range(20)) - set(reserved))[-4:]
    assert chosen(method, [picture]) == [sorted([*reserved, *best])]
    picture.edges[:] = 9  # ties at the highest score do not push them out either
    lowest = sorted(set(range(20)) - set(reserved))[:4]
    assert chosen(method, [picture]) == [sorted([*reserved, *lowest])]


@pytest.mark.parametrize("rule", RULES)
def test_scores_of_each_rule(rule: str) -> None:
    images = pictures(9, 4, 1)
    method, given = config(stage1_score=rule), signals(images)
    got = method.stage1_scores(given, method.draft(given))
    if rule == "entropy":
        assert got is None
        return
    expected = []
    for picture in images:
        n = len(picture.entropy)
        median = np.sort(picture.entropy)[(n - 1) // 2]
        deviation = np.abs(picture.entropy - median)
        expected.append(picture.edges if rule == "edges" else deviation)
    assert same_bits(got, torch.from_numpy(np.concatenate(expected)))


@pytest.mark.parametrize("rule", RULES)
def test_level_and_count_do_not_depend_on_the_rule(rule: str) -> None:
    given = signals(pictures(37, 64))
    got, plain = config(stage1_score=rule).draft(given), config().draft(given)
    for name in ("median", "level", "count"):
        assert same_bits(getattr(got, name), getattr(plain, name))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_keep_and_everything(rule: str) -> None:
    method = config(stage1_score=rule, stage1_spread=0.3)
    given = signals(pictures(5, 3))
    scores = method.stage1_scores(given, method.draft(given))
    assert method.select(given, [0, 0], scores).indices.numel() == 0
    assert method.select(given, [5, 3], scores).indices.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize("rule", RULES)
def test_without_stage_1_nothing_is_ranked(rule: str) -> None:
    method = config(stage1_score=rule, stage1=False)
    assert method.needs == {"pixel_entropies", "layer_queries"}
    given = signals(pictures(5, 3), edges=False)
    assert method.stage1_scores(given, method.draft(given)) is None
    assert chosen(method, pictures(5, 3), edges=False) == [[0, 1, 2, 3, 4], [0, 1, 2]]


def test_deviation_is_from_the_medians_of_the_draft() -> None:
    """They are not planned again."""
    method, given = config(stage1_score="deviation"), signals(pictures(9, 4))
    draft = method.draft(given)
    with record_ops() as ops:
        scores = method.stage1_scores(given, draft)
    assert not [name for name in ops if "complexity_plan" in name]
    assert scores.shape == given.entropy.shape


@given(size=st.integers(1, 600), data=st.data())
def test_spread_is_even_and_grows(size: int, data: st.DataObject) -> None:
    """A larger share keeps a smaller one's cells, and no stretch is left out."""
    order = spread_cells(size)
    assert sorted(order) == list(range(size))
    count = data.draw(st.integers(1, size))
    assert best_cells(np.zeros(size), count, 1.0) == sorted(order[:count])
    taken = sorted(order[:count])
    gaps = np.diff([-1, *taken, size])
    assert gaps.max() <= math.ceil(3 * size / count) + 1


def test_edges_are_asked_for_only_where_they_rank() -> None:
    for rule in RULES:
        assert ("pixel_edges" in config(stage1_score=rule).needs) == (rule == "edges")
        assert "pixel_entropies" in config(stage1_score=rule).needs
    with pytest.raises(ValueError, match="images: expected edges"):
        chosen(config(stage1_score="edges"), pictures(4), edges=False)
    assert chosen(config(stage1_score="deviation"), pictures(4), edges=False)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"stage1_score": "median"}, ValueError),
        ({"stage1_score": None}, ValueError),
        ({"stage1_spread": 1.0}, ValueError),
        ({"stage1_spread": -0.1}, ValueError),
        ({"stage1_spread": math.nan}, ValueError),
        ({"stage1_spread": True}, TypeError),
        ({"stage1_spread": "0.1"}, TypeError),
    ],
)
def test_bad_fields(fields: dict[str, Any], error: type[Exception]) -> None:
    (name,) = fields
    with pytest.raises(error, match=f"{name}: expected .* got"):
        config(**fields)


def test_json_and_presets() -> None:
    method = erase.EraseConfig.for_model("Qwen2.5-VL-7B", stage1_score="edges", stage1_spread=0.25)
    assert (method.stage1_score, method.stage1_spread) == ("edges", 0.25)
    assert EraseConfig.from_json(method.to_json()) == method
    assert type(config(stage1_spread=0).stage1_spread) is float
    before = {k: v for k, v in json.loads(method.to_json()).items() if k[:8] != "stage1_s"}
    assert EraseConfig.from_json(json.dumps(before)) == erase.EraseConfig.for_model("Qwen2.5-VL-7B")


@pytest.mark.parametrize("spread", [0.0, 0.4])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [photo, page])
def test_inspection(make: Any, rule: str, spread: float) -> None:
    preset = dataclasses.replace(PRESETS["Qwen2.5-VL-7B"], resolution=SMALL)
    method = EraseConfig.for_model(preset.model, stage1_score=rule, stage1_spread=spread)
    seen = inspect_image(Image.fromarray(make(7, 9)), preset, method)
    expected = choose_image(method, seen.image.numpy(), preset.cell)
    assert seen.kept.tolist() == expected.kept
    assert ("patch_edges" in seen.backends) == (rule == "edges")
