"""Stage 1 by other scores than entropies, and with a spread: sessions against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import erase
from erase.hf import signals
from erase.hf.families import Encoded
from erase.hf.ownership import Stream, join_tiles
from erase.hf.planning import Surroundings, plan_images
from erase_kernels import patch_entropy_from_pixels
from erase_kernels.testing import record_ops
from tests.families import ALL, TinyFamily
from tests.families.internvl import FAMILIES as INTERNVL
from tests.hf.calls import greedy
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import run_oracle, run_pruned, run_stock
from tests.hf.families import check, one, ragged
from tests.hf.operators import backend_of
from tests.hf.place import DEVICE
from tests.hf.test_identity import assert_same_bits
from tests.hf.test_oracle_calls import assert_pruned
from tests.hf.test_sync import READS_PER_PREFILL, watched
from tests.hf.video_prompts import clip, encode, truth_of
from tests.models import shared_model
from tests.prompts import chat_processor, photo

QWEN = "qwen2_5_vl"
EDGES_RAN = "erase_kernels::patch_edges_from_pixels_torch"
RULES = ("entropy", "deviation", "edges")
FIELDS: list[dict[str, Any]] = [
    {"stage1_score": rule, "stage1_spread": spread} for rule in RULES for spread in (0.0, 0.3)
][1:]
"""Every combination but the default, which all other tests run with."""
NAMES = [f"{fields['stage1_score']}-{fields['stage1_spread']}" for fields in FIELDS]
every_choice = pytest.mark.parametrize("fields", FIELDS, ids=NAMES)


@pytest.mark.parametrize("name", ["greedy_photo", "two_images", "ragged_batch", "masked_image"])
@every_choice
def test_qwen(name: str, fields: dict[str, Any]) -> None:
    """Kept cells, scores and logits are the oracle's, and not those of the default."""
    case = by_name(name)
    got = assert_pruned(case, QWEN, "sdpa", **fields)
    _, plain = run_oracle(case, QWEN)
    kept = [image.kept.tolist() for row in got.reports[0].rows for image in row.images]
    default = [image.kept for row in plain.turns[0].rows for image in row.images]
    assert kept != default
    assert [len(cells) for cells in kept] == [len(cells) for cells in default]


@pytest.mark.parametrize("build", [one, ragged])
@every_choice
def test_tiles(build: Any, fields: dict[str, Any]) -> None:
    check(INTERNVL[0], greedy, lambda: build(INTERNVL[0]), **fields)


@pytest.mark.parametrize("force_gathers", [False, True])
@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
@every_choice
def test_keep_everything(name: str, force_gathers: bool, fields: dict[str, Any]) -> None:
    case = by_name(name)
    stock = run_stock(case, QWEN)
    got = run_pruned(case, QWEN, keep_ratio=1.0, force_gathers=force_gathers, **fields)
    assert_same_bits(got.outcome, stock)
    for row in got.reports[0].rows:
        assert len(row.kept) == sum(len(image.entropy) for image in row.images)


@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
@every_choice
def test_one_read_per_prefill(name: str, fields: dict[str, Any]) -> None:
    model, case = shared_model(QWEN), by_name(name)
    stock = watched(model, case, 1)
    config = erase.EraseConfig(**case.settings(**fields))
    with erase.prune(model, config, processor=chat_processor()) as session:
        pruned = watched(model, case, 1)
    extra = pruned.reads - stock.reads
    assert extra.total() <= READS_PER_PREFILL, extra
    assert pruned.from_host == {}
    assert session.report is not None


@every_choice
def test_report(fields: dict[str, Any]) -> None:
    """Aligned with the entropies, and silent where it would repeat them."""
    report = run_pruned(by_name("two_images"), QWEN, **fields).reports[0]
    by_edges = fields["stage1_score"] == "edges"
    assert ("patch_edges_from_pixels" in report.backends) == by_edges
    assert all(name == backend_of(op) for op, name in report.backends.items())
    for image in report.rows[0].images:
        if fields["stage1_score"] == "entropy":
            assert image.stage1_scores is None
        else:
            assert image.stage1_scores.shape == image.entropy.shape
            assert image.stage1_scores.dtype == torch.float32


def test_edges_only_where_the_method_in_use_asks() -> None:
    model, case = shared_model(QWEN), by_name("greedy_photo")
    config = erase.EraseConfig(**case.settings())

    def ran() -> bool:
        with torch.no_grad(), record_ops() as ops:
            model(**case.build()[0].inputs)
        return EDGES_RAN in ops

    with erase.prune(model, config, processor=chat_processor()) as session:
        assert not ran()
        with session.override(stage1_score="edges", stage1_spread=0.3):
            assert ran()
            kept = session.report.rows[0].images[0].kept
        with session.override(stage1_score="deviation"):
            assert not ran()
        assert not ran()
        assert session.report.rows[0].images[0].stage1_scores is None
    want = run_pruned(case, QWEN, stage1_score="edges", stage1_spread=0.3).reports[0]
    assert torch.equal(kept, want.rows[0].images[0].kept)


def test_images_encoded_under_another_method_are_refused() -> None:
    places = torch.ones(1, 3, dtype=torch.bool, device=DEVICE)
    encoded = (Encoded(torch.ones(3, device=DEVICE)),)
    method = erase.EraseConfig(**BASE_CONFIG, stage1_score="edges")
    around = Surroundings(~places, torch.zeros_like(places), None, None, 0)
    with pytest.raises(ValueError, match="method: it asks for edges of the pixels, but images"):
        plan_images(method, [Stream("image", encoded, places)], around)


def _mirrored(pixels: torch.Tensor, layout: Any) -> torch.Tensor:
    return -patch_entropy_from_pixels(pixels, layout)


@pytest.mark.parametrize("family", ALL, ids=str)
def test_every_family_lays_edges_out_as_entropies(
    family: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With negated entropies for edges the two must mirror each other, token by token."""
    monkeypatch.setattr(signals, "patch_edges_from_pixels", _mirrored)
    model = family.model()
    config = erase.EraseConfig(**BASE_CONFIG, stage1_score="edges")
    for build in (one, ragged):
        with torch.no_grad(), erase.prune(model, config) as session:
            model(**build(family)[0].inputs)
        images = [image for row in session.report.rows for image in row.images]
        assert len(images) > 1
        for image in images:
            assert torch.equal(image.stage1_scores, -image.entropy)
        assert any(image.entropy.unique().numel() > 2 for image in images)


def test_videos() -> None:
    """Edges inside both frames of a slice; images and videos in other orders than their streams."""
    family = next(f for f in ALL if f.name == QWEN)
    films = [clip(family, 4, 2, 3), clip(family, 3, 2, 2, 5)]
    prompt = encode(family, [["Watch: ", films[0], photo(3, 4), " and ", films[1], "?"]])
    config = erase.EraseConfig(**BASE_CONFIG, stage1_score="edges")
    model = family.model()
    with torch.no_grad(), erase.prune(model, config, videos=True) as session:
        model(**prompt.inputs)
    image, *videos = session.report.rows[0].images
    truths = [truth_of(family, film) for film in films]
    assert [video.modality for video in videos] == ["video", "video"]
    for got, want in zip(videos, truths, strict=True):
        assert torch.equal(got.stage1_scores.cpu(), torch.from_numpy(want.edges))
        assert torch.equal(got.entropy.cpu(), torch.from_numpy(want.entropy))
    assert image.modality == "image"


def test_joined_tiles_keep_their_edges() -> None:
    tiles = [
        Encoded(torch.full((2,), float(i)), edges=torch.tensor([10.0 * i, 10.0 * i + 1]))
        for i in range(3)
    ]
    places = torch.tensor([[True] * 4 + [False] + [True] * 2], device=DEVICE)
    first, second = join_tiles(tiles, places)
    assert first.edges.tolist() == [0.0, 1.0, 10.0, 11.0]
    assert second.edges.tolist() == [20.0, 21.0]
    flagged = Encoded(torch.ones(1), torch.tensor([True, False]), torch.tensor([7.0]))
    (image,) = join_tiles([tiles[1], flagged], places[:, :4])
    assert image.edges.tolist() == [10.0, 11.0, 7.0]
    assert image.candidates.tolist() == [True, True, True, False]
    (plain,) = join_tiles([tiles[1], Encoded(torch.ones(2))], places[:, :4])
    assert plain.edges is None
