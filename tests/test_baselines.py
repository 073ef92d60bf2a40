"""Baselines without a model: their fields, counts, choices and grids."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import erase
from erase.methods import ImagePlan, ImageSignals, LayerSignals, Method, ModelFacts, RowPlan
from erase.methods.downsample import smaller_grid
from erase_kernels.testing import record_ops
from tests.hf.operators import ran_ops
from tests.hf.place import DEVICE
from tests.models import shared_model
from tests.prompts import photo

SIZES = (30, 1, 43)
HYBRID = ModelFacts("qwen3_5", 6, (3, 5))


def signals(sizes: tuple[int, ...] = SIZES) -> ImageSignals:
    entropy = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(3))
    ends = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32)
    return ImageSignals(entropy.to(DEVICE), sizes, ends.to(DEVICE))


def selected(method: Method, images: ImageSignals) -> list[list[int]]:
    """What stage 1 keeps of each image."""
    draft = method.draft(images)
    counts = draft.count.tolist()
    chosen = method.select(images, counts, method.stage1_scores(images, draft))
    return [part.tolist() for part in chosen.indices.split(counts)]


@pytest.mark.parametrize("cls", [erase.Random, erase.FastV, erase.Downsample])
@pytest.mark.parametrize(
    ("ratio", "error"),
    [(0.0, ValueError), (1.1, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
def test_bad_ratio(cls: Any, ratio: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"keep_ratio: expected a number in \(0, 1\]"):
        cls(ratio)


@pytest.mark.parametrize(
    ("cls", "fields", "error", "message"),
    [
        (erase.Random, {"seed": -1}, ValueError, "seed: expected an int of at least 0, got -1"),
        (erase.Random, {"seed": True}, TypeError, "seed: expected an int, got bool"),
        (erase.Random, {"force_gathers": 1}, TypeError, "force_gathers: expected a bool, got int"),
        (erase.FastV, {"layer": -1}, ValueError, "layer: expected an int of at least 0, got -1"),
        (erase.FastV, {"layer": 1.0}, TypeError, "layer: expected an int, got float"),
        (erase.FastV, {"force_gathers": None}, TypeError, "force_gathers: expected a bool"),
    ],
)
def test_bad_fields(cls: Any, fields: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cls(0.5, **fields)


@pytest.mark.parametrize(
    "method",
    [erase.Random(0.25, seed=3), erase.FastV(0.25, layer=2), erase.Downsample(0.25)],
    ids=lambda method: type(method).__name__,
)
def test_configuration(method: Any) -> None:
    """Frozen, comparable, JSON there and back, changed copies are checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.keep_ratio = 0.5
    text = method.to_json()
    assert type(method).from_json(text) == method
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(method)}
    assert method.replace(keep_ratio=np.float64(0.5)).keep_ratio == 0.5
    assert hash(method) == hash(method.replace())
    with pytest.raises(ValueError, match="keep_ratio"):
        method.replace(keep_ratio=2)
    with pytest.raises(TypeError):
        method.replace(late_layer=2)
    with pytest.raises(ValueError, match=r"unknown fields \['late_layer'\]"):
        type(method).from_json('{"keep_ratio": 0.5, "late_layer": 2}')
    with pytest.raises(ValueError, match=r"missing fields \['keep_ratio'\]"):
        type(method).from_json("{}")


def test_who_follows_the_protocol() -> None:
    assert isinstance(erase.Random(0.5), Method)
    assert isinstance(erase.FastV(0.5), Method)
    assert erase.Random(0.5).needs == frozenset()
    assert erase.FastV(0.5).needs == {"layer_queries"}
    with pytest.raises(RuntimeError, match="no second stage"):
        erase.Random(0.5).score(None)


def test_layers_of_fastv() -> None:
    erase.FastV(0.5, layer=3).validate(HYBRID)
    erase.Random(0.5).validate(HYBRID)
    with pytest.raises(ValueError, match="layer: expected a decoder layer of this model, 0 to 5"):
        erase.FastV(0.5, layer=6).validate(HYBRID)
    with pytest.raises(ValueError, match="layer: layer 1 is a linear-attention layer"):
        erase.FastV(0.5).validate(HYBRID)


# -- random ----------------------------------------------------------------------------------------


def test_random_counts_and_levels() -> None:
    draft = erase.Random(0.3).draft(signals())
    assert draft.count.tolist() == [9, 0, 12]
    assert draft.level.tolist() == [0, 0, 0]
    parts = signals().entropy.split(SIZES)
    assert draft.median.tolist() == [float(part.sort()[0][(len(part) - 1) // 2]) for part in parts]


def test_random_choice_depends_on_seed_and_sizes_alone() -> None:
    method = erase.Random(0.5, seed=7)
    first = selected(method, signals())
    torch.manual_seed(99)
    flat = dataclasses.replace(signals(), entropy=torch.zeros(sum(SIZES), device=DEVICE))
    assert selected(method, flat) == first
    assert selected(method.replace(seed=8), signals()) != first
    assert selected(method, signals(SIZES[:1])) == first[:1], "images before others"
    assert [len(part) for part in first] == [15, 0, 21]
    assert all(part == sorted(set(part)) for part in first)


def test_random_is_uniform() -> None:
    """Every cell of 12 is kept about equally often: a quarter of 2000 times, 5 deviations wide."""
    trials, cells, ratio = 2000, 12, 0.25
    counts = np.zeros(cells)
    for seed in range(trials):
        (kept,) = selected(erase.Random(ratio, seed), signals((cells,)))
        counts[kept] += 1
    deviation = math.sqrt(trials * ratio * (1 - ratio))
    assert np.abs(counts - trials * ratio).max() < 5 * deviation


def test_random_has_one_stage() -> None:
    images = [ImagePlan(1.0, 0, 9, 30, 0), ImagePlan(1.0, 0, 12, 43, 0), ImagePlan(1.0, 0, 3, 9, 2)]
    rows = erase.Random(0.3, force_gathers=True).decide(images, batch=3)
    assert rows == (RowPlan(None, 21), RowPlan(None, 0), RowPlan(None, 3))


# -- fastv -----------------------------------------------------------------------------------------


def test_fastv_lets_everything_enter() -> None:
    method = erase.FastV(0.1)
    assert method.draft(signals()).count.tolist() == list(SIZES)
    assert selected(method, signals()) == [list(range(n)) for n in SIZES]


def test_fastv_rows() -> None:
    """int(N * keep_ratio) over a row's images; nothing to drop, no second stage."""
    images = [ImagePlan(1.0, 0, n, n, row) for n, row in ((3, 0), (4, 0), (5, 2))]
    method = erase.FastV(0.5, layer=4)
    assert method.decide(images, 3) == (RowPlan(4, 3), RowPlan(None, 0), RowPlan(4, 2))
    whole = method.replace(keep_ratio=1)
    assert whole.decide(images, 3) == (RowPlan(None, 7), RowPlan(None, 0), RowPlan(None, 5))
    forced = whole.replace(force_gathers=True)
    assert forced.decide(images, 3) == (RowPlan(4, 7), RowPlan(None, 0), RowPlan(4, 5))


@pytest.mark.parametrize("texts", [((2, 9), (), (0, 5)), ((), (1,), (3, 8)), ((), (), ())])
def test_fastv_scores_with_the_last_text_token(texts: tuple[tuple[int, ...], ...]) -> None:
    """Against a softmax in float64, also where batch rows have no text at all."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 4, 10, 8, generator=generator)
    key = torch.randn(3, 2, 13, 8, generator=generator)  # three slots of the past
    mask = torch.ones(3, 13, dtype=torch.bool)
    mask[2, :4] = False
    columns = ((3, 4, 7), (5, 6), (4, 11))
    want: list[float] = []
    for b, (text, mine) in enumerate(zip(texts, columns, strict=True)):
        if not text:
            want += [0.0] * len(mine)
            continue
        last = text[-1]
        logits = query[b, :, last].double()[:, None] @ key[b].double().repeat_interleave(2, 0).mT
        hidden = ~mask[b] | (torch.arange(13) > last + 3)
        weights = (0.3 * logits[:, 0]).masked_fill(hidden, -math.inf).softmax(-1).mean(0)
        want += weights[list(mine)].tolist()

    def flat(parts: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, torch.Tensor]:
        ends = np.cumsum([0, *map(len, parts)])
        joined = [value for part in parts for value in part]
        values = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in (joined, ends))
        return tuple(values)

    states = (x.to(DEVICE) for x in (query, key))
    layer = LayerSignals(*states, *flat(texts), *flat(columns), mask.to(DEVICE), 0.3)
    with record_ops() as ops:
        got = erase.FastV(0.5).score(layer)
    assert {name.split("::")[1].split(".")[0] for name in ops if "erase" in name} == ran_ops(
        {"text_to_vision_scores"}
    )
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=2e-5, atol=1e-7)


# -- smaller images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "grid"),
    [
        (34, 34, 0.15, (13, 13)),  # 169 of 173
        (12, 4, 0.25, (6, 2)),  # exactly
        (4, 12, 0.25, (2, 6)),
        (10, 10, 0.07, (2, 3)),  # a square of 7 cells: 6 are allowed, fewer rows
        (5, 5, 0.2, (2, 2)),  # of 5 cells at least 4
        (1, 19, 0.5, (1, 9)),
        (3, 3, 0.01, (1, 1)),  # at least one cell
        (7, 3, 1.0, (7, 3)),
    ],
)
def test_grids(rows: int, columns: int, ratio: float, grid: tuple[int, int]) -> None:
    assert smaller_grid(rows, columns, ratio) == grid


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), ratio=st.floats(0.01, 1.0))
def test_no_grid_is_better(rows: int, columns: int, ratio: float) -> None:
    """Against every grid with as many cells, by logarithms; equal ones have no more cells."""
    budget = max(1, int(rows * columns * ratio))
    got = smaller_grid(rows, columns, ratio)
    assert max(1, math.floor(budget * 0.9)) <= got[0] * got[1] <= budget

    def error(grid: tuple[int, int]) -> float:
        return abs(math.log(grid[1] / grid[0]) - math.log(columns / rows))

    for r in range(1, budget + 1):
        for c in range(-(-max(1, budget * 9 // 10) // r), budget // r + 1):
            assert error((r, c)) > error(got) - 1e-12
            if math.isclose(error((r, c)), error(got), rel_tol=1e-12, abs_tol=1e-12):
                assert (-r * c, r) >= (-got[0] * got[1], got[0])
    if ratio == 1.0:
        assert got == (rows, columns)


def test_prepared_images() -> None:
    images = [Image.fromarray(photo(6, 8)), Image.new("P", (101, 60)), Image.new("RGBA", (5, 5))]
    small = erase.Downsample(0.25).prepare(images)
    assert [image.size for image in small] == [(4 * 28, 3 * 28), (2 * 28, 28), (28, 28)]
    assert [image.mode for image in small] == ["RGB"] * 3
    want = images[0].resize((4 * 28, 3 * 28), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(small[0]), np.asarray(want))
    assert [image.size for image in images] == [(8 * 28, 6 * 28), (101, 60), (5, 5)]
    assert erase.Downsample(0.25).prepare([]) == []


def test_prepare_with_other_cells() -> None:
    (small,) = erase.Downsample(0.5).prepare([Image.new("L", (8 * 32, 4 * 32))], cell=32)
    assert small.size == (5 * 32, 3 * 32)


def test_nothing_to_make_smaller() -> None:
    image = Image.fromarray(photo(3, 4))
    (same,) = erase.Downsample(1).prepare([image])
    assert np.array_equal(np.asarray(same), np.asarray(image))
    assert same is not image


@pytest.mark.parametrize(
    ("images", "cell", "error", "message"),
    [
        (Image.new("RGB", (56, 56)), 28, TypeError, "images: expected a sequence of PIL images"),
        ([np.zeros((56, 56, 3))], 28, TypeError, "images: expected PIL images, got ndarray"),
        ([], 0, ValueError, "cell: expected an int of at least 1, got 0"),
        ([], 28.0, TypeError, "cell: expected an int, got float"),
    ],
)
def test_bad_images(images: Any, cell: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        erase.Downsample(0.5).prepare(images, cell)


def test_downsample_is_no_pruning_method() -> None:
    model = shared_model("qwen2_5_vl")
    with pytest.raises(TypeError, match=r"Downsample prunes no tokens.* call its prepare\(\)"):
        erase.prune(model, erase.Downsample(0.5))
    with erase.prune(model, erase.Random(0.5)):  # nothing was left behind
        pass
