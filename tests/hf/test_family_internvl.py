"""InternVL: tiles of an image are planned as one, and placed as the model's pixel shuffle does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase.hf.families import Encoded
from erase.hf.ownership import join_tiles
from tests.families.internvl import FAMILIES, TILE, processor
from tests.hf.calls import direct, greedy
from tests.hf.cases import BASE_CONFIG
from tests.hf.families import (
    ROUTES,
    check,
    check_pixels,
    check_route,
    check_statistics_refused,
    check_waits,
    one,
    ragged,
    run_pruned,
)
from tests.hf.place import DEVICE
from tests.prompts import noise, page, photo

FAMILY = FAMILIES[0]
TOKENS = 16


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route: str, attention: str) -> None:
    check_route(FAMILY, route, attention)


def test_a_token_is_a_block_of_patches_row_major() -> None:
    """What the adapter assumes of the model: token (i, j) is made of patches 2i..2i+1, 2j..2j+1."""
    patches = TILE // 14
    numbers = torch.arange(patches * patches).view(1, patches, patches, 1)
    features = numbers.repeat(1, 1, 1, 4)
    tokens = FAMILY.model().base_model.pixel_shuffle(features, 0.5).reshape(TOKENS, -1)
    for token, made_of in enumerate(tokens.tolist()):
        row, column = 2 * (token // 4), 2 * (token % 4)
        corner = row * patches + column
        assert set(made_of) == {corner, corner + 1, corner + patches, corner + patches + 1}


def test_tiles_and_thumbnail_share_one_ranking() -> None:
    """A blank tile gives its share of the budget to the other tile and the thumbnail."""
    image = np.concatenate([np.full((112, 112, 3), 200, np.uint8), noise(4, 4)], axis=1)
    got = check(FAMILY, greedy, lambda: [FAMILY.encode([[image, "Describe."]])], stage2=False)
    (choice,) = got.reports[0].rows[0].images
    blank = choice.entropy[:TOKENS].count_nonzero()
    assert len(choice.entropy) == 3 * TOKENS
    assert blank == 0
    assert len(choice.kept) == int(3 * TOKENS * 0.4)
    assert set(range(TOKENS, 2 * TOKENS)) <= set(choice.kept.tolist())


def test_images_with_nothing_between_them_count_as_one() -> None:
    prompt = FAMILY.encode([[photo(5, 6), page(6, 4), "Describe."]])
    ids, types = prompt.inputs["input_ids"], prompt.inputs["input_ids"] != -1
    ends = FAMILY.slot(prompt.images[0])
    seam = len(ends) + int((ids[0] == ends[0]).nonzero()[0]) - 1
    types[:, seam : seam + 2] = False  # the end of the first image and the start of the second
    for name in ("input_ids", "attention_mask"):
        prompt.inputs[name] = prompt.inputs[name][types][None]
    report = run_pruned(FAMILY, greedy, [prompt]).reports[0]
    assert [len(image.entropy) for image in report.rows[0].images] == [6 * TOKENS]


def test_frames_of_a_video_are_images() -> None:
    """As the processor writes them: one tile per frame, with text between."""
    frames = [noise(4, 4, seed=i) for i in range(3)]
    pixels = processor(crop_to_patches=False)(frames, return_tensors="pt")["pixel_values"]
    row = [part for i in range(3) for part in (f"Frame{i + 1}: ", frames[i], "\n")]
    prompt = FAMILY.encode([row])
    ids = prompt.inputs["input_ids"]
    pad = ids == FAMILY.model().config.image_token_id
    first = pad.cumsum(1) - 1
    keep = ~pad | (first % (3 * TOKENS) < TOKENS)  # a third of each run: no tiles, one frame
    prompt.inputs["input_ids"] = ids[keep][None]
    prompt.inputs["attention_mask"] = prompt.inputs["attention_mask"][keep][None]
    prompt.inputs["pixel_values"] = pixels.to(DEVICE)
    report = run_pruned(FAMILY, greedy, [prompt]).reports[0]
    assert [len(image.entropy) for image in report.rows[0].images] == [TOKENS] * 3


def test_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="videos: pruning videos is not supported for internvl"):
        erase.prune(FAMILY.model(), erase.EraseConfig(**BASE_CONFIG), videos=True)


@pytest.mark.parametrize("batch", [one, ragged])
def test_embeddings_instead_of_ids(batch: object) -> None:
    """Runs of placeholders are found by their embedding."""
    prompts = batch(FAMILY)
    want = run_pruned(FAMILY, direct, prompts)
    prompt = batch(FAMILY)[0]
    ids = prompt.inputs.pop("input_ids")
    model = FAMILY.model()
    prompt.inputs["inputs_embeds"] = model.get_input_embeddings()(ids)

    def call(model: object, _: object) -> object:
        return model(**prompt.inputs, use_cache=False)

    got = run_pruned(FAMILY, call, [prompt])
    for a, b in zip(got.reports[0].rows, want.reports[0].rows, strict=True):
        assert a.kept.tolist() == b.kept.tolist()
    assert torch.equal(got.outcome.logits.cpu(), want.outcome.logits[0])


def encoded(*tokens: int) -> list[Encoded]:
    return [Encoded(torch.full((n,), float(i))) for i, n in enumerate(tokens)]


def placeholders(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "tiles", "images"),
    [
        (["..xx"], 1, [[0.0]]),
        (["xxxx.xx."], 3, [[0.0, 1.0], [2.0]]),
        (["xx.xx", "..xx."], 3, [[0.0], [1.0], [2.0]]),
        (["xxxx", "...."], 2, [[0.0, 1.0]]),
        (["....", "xxxx"], 2, [[0.0, 1.0]]),
        # Beams: rows repeated, tiles not.
        (["xxxx.", "xxxx.", "xx.xx", "xx.xx"], 4, [[0.0, 1.0], [2.0], [3.0]]),
        (["xx..", "xx..", "xx..", "....", "....", "...."], 1, [[0.0]]),
    ],
)
def test_runs_join_tiles(rows: list[str], tiles: int, images: list[list[float]]) -> None:
    joined = join_tiles(encoded(*[2] * tiles), placeholders(*rows).to(DEVICE))
    assert [image.entropy[::2].tolist() for image in joined] == images
    assert all(image.candidates is None for image in joined)


def test_joined_tiles_keep_their_candidates() -> None:
    flags = torch.tensor([True, False, True])
    tiles = [Encoded(torch.ones(2), flags), Encoded(torch.zeros(1))]
    (image,) = join_tiles(tiles, placeholders("xxxx"))
    assert image.entropy.tolist() == [1.0, 1.0, 0.0]
    assert image.candidates.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("rows", "tiles", "message"),
    [
        (["xxx."], 2, "row 0 has a run of 3 image tokens.*tiles of \\[2, 2\\]"),
        (["xx.."], 2, "image tokens for 1 tiles, but 2 were encoded"),
        (["...."], 1, "image tokens for 0 tiles, but 1 were encoded"),
        (["xx.x", "x.xx"], 3, "row 0 has a run of 1 image tokens"),
    ],
)
def test_other_runs_are_refused(rows: list[str], tiles: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_tiles(encoded(*[2] * tiles), placeholders(*rows))


def test_tiles_that_are_not_square_are_refused() -> None:
    prompt = one(FAMILY)[0]
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"][..., : TILE // 2]
    with pytest.raises(ValueError, match=r"pixel_values: expected square tiles.*112x56"):
        run_pruned(FAMILY, greedy, [prompt])


@pytest.mark.parametrize("given", [None, processor()], ids=["assumed", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixel_types(dtype: torch.dtype, given: object) -> None:
    check_pixels(FAMILY, dtype, given, exact_in_bfloat16=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_statistics_are_refused(dtype: torch.dtype) -> None:
    check_statistics_refused(FAMILY, processor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3), dtype)


def test_waits_of_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, and the runs of placeholders."""
    check_waits(FAMILY, 2, monkeypatch)
