"""GLM-4V and its relatives: videos come as image tokens, and pass through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import erase
from erase.demo_assets import load_tokenizer
from tests.families import glm4v
from tests.families._base import IDS, TinyFamily
from tests.families.glm4v import image_processor
from tests.hf.calls import Outcome, generate_into
from tests.hf.cases import BASE_CONFIG, DESCRIBE, NEXT_USER
from tests.hf.family_runs import (
    assert_as_the_oracle,
    assert_same_logits,
    generated,
    pruned,
    ragged,
    reads_of_a_prefill,
)
from tests.oracle_choices import recovered_images
from tests.prompts import ANSWER, CLIP_MEAN, CLIP_STD, SYSTEM, Video, noise, page, photo

FAMILIES = glm4v.FAMILIES
FAMILY = FAMILIES[0]
BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=str)


@BY_NAME
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_batch(family: TinyFamily, attention: str) -> None:
    assert_as_the_oracle(family, ragged(family), attention)


@BY_NAME
def test_keep_everything(family: TinyFamily) -> None:
    inputs = ragged(family).inputs
    got, reports = pruned(family, inputs, keep_ratio=1.0, force_gathers=True)
    assert_same_logits(got, generated(family.model(), inputs))
    assert "compact_rows" in reports[0].backends


def test_with_processor() -> None:
    assert_as_the_oracle(FAMILY, ragged(FAMILY), processor=image_processor())


def test_half_precision_pixels() -> None:
    prompt = ragged(FAMILY)
    pixels = prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].bfloat16()
    prompt.images = recovered_images(pixels, prompt.inputs["image_grid_thw"], CLIP_MEAN, CLIP_STD)
    (report,) = assert_as_the_oracle(FAMILY, prompt)
    assert report.approximate_pixels


def test_one_read_per_prefill() -> None:
    added, uploads = reads_of_a_prefill(FAMILY, ragged(FAMILY).inputs)
    assert added.total() <= 1, added
    assert uploads == {}


def test_processor_of_other_patches() -> None:
    processor = glm4v.Glm4vImageProcessor(patch_size=16)
    with pytest.raises(ValueError, match=r"patch_size is 16, but the model's is 14"):
        erase.prune(FAMILY.model(), erase.EraseConfig(**BASE_CONFIG), processor)


# -- videos ------------------------------------------------------------------------------------


def video_inputs(rows: list[list[Any]], head: str = SYSTEM) -> dict[str, torch.Tensor]:
    """Texts and videos: frames as runs of image tokens, with their time behind them."""
    tokenizer = load_tokenizer()
    held = [part for row in rows for part in row if isinstance(part, Video)]
    encoded = []
    for row in rows:
        ids, kinds = list(tokenizer(head).input_ids), []
        kinds = [0] * len(ids)
        for part in [*row, ANSWER]:
            pieces = _frames(part) if isinstance(part, Video) else [(part, 0)]
            for piece, kind in pieces:
                new = tokenizer(piece).input_ids if isinstance(piece, str) else piece
                ids, kinds = ids + list(new), kinds + [kind] * len(new)
        encoded.append((ids, kinds))
    width = max(len(ids) for ids, _ in encoded)
    pads = [width - len(ids) for ids, _ in encoded]
    return {
        "input_ids": torch.tensor([[0] * n + e[0] for n, e in zip(pads, encoded, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (width - n) for n in pads]),
        "mm_token_type_ids": torch.tensor(
            [[0] * n + e[1] for n, e in zip(pads, encoded, strict=True)]
        ),
        "pixel_values_videos": torch.cat([video.patches() for video in held]),
        "video_grid_thw": torch.tensor([video.grid for video in held]),
    }


def _frames(video: Video) -> list[tuple[Any, int]]:
    slices = video.grid[0]
    pads = [IDS["image_token_id"]] * (video.tokens() // slices)
    start, end = [IDS["vision_start_token_id"]], [IDS["vision_end_token_id"]]
    parts: list[tuple[Any, int]] = []
    for second in range(slices):
        parts += [(start, 0), (pads, 2), (end, 0), (f"{second}", 0)]
    return parts


def a_video(seed: int = 0) -> Video:
    return Video(np.stack([noise(2, 3, seed + t) for t in range(4)]))


@BY_NAME
@pytest.mark.parametrize("direct", [False, True], ids=["generate", "direct"])
def test_videos_pass_through(family: TinyFamily, direct: bool) -> None:
    model = family.model()
    inputs = video_inputs([["Look: ", a_video(), " Summarise."], [a_video(4), "Why?"]])
    config = erase.EraseConfig(**BASE_CONFIG)

    def run() -> list[torch.Tensor]:
        if not direct:
            return generated(model, inputs).logits
        with torch.no_grad():
            return [model(**inputs).logits]

    stock = run()
    with erase.prune(model, config) as session:
        for got, want in zip(run(), stock, strict=True):
            assert torch.equal(got, want)
    assert (session.prefills_seen, session.prefills_pruned) == (0, 0)


@BY_NAME
def test_pruning_videos_is_refused(family: TinyFamily) -> None:
    with pytest.raises(ValueError, match="videos: pruning videos is not supported for glm4v"):
        erase.prune(family.model(), erase.EraseConfig(**BASE_CONFIG), videos=True)


@BY_NAME
def test_image_beside_a_video(family: TinyFamily) -> None:
    """The stock model tells the two not apart and raises; a session neither hides that nor stays
    in the middle of the prefill."""
    model = family.model()
    image = family.encode([[photo(4, 5), DESCRIBE]]).inputs
    video = video_inputs([[a_video(), "Why?"]])
    both = {
        **{name: torch.cat([image[name], video[name]], 1) for name in image if name in video},
        **{name: value for name, value in image.items() if name not in video},
        **{name: value for name, value in video.items() if name not in image},
    }
    with pytest.raises((ValueError, RuntimeError)) as stock:
        generated(model, both)
    with erase.prune(model, erase.EraseConfig(**BASE_CONFIG)) as session:
        with pytest.raises(type(stock.value)) as got:
            generated(model, both)
        assert str(got.value) == str(stock.value)
        generated(model, image)
    assert session.prefills_pruned == 1


def _image_after_video(model: Any) -> tuple[Outcome, int]:
    """A turn with a video, and one with an image; and where that one starts."""
    out, first = Outcome(), video_inputs([[a_video(), "Why?"]])
    sequence = generate_into(out, model, 3, **first)
    second = FAMILY.encode([[page(6, 7), DESCRIBE]], head=NEXT_USER).inputs
    ids = torch.cat([sequence, second["input_ids"]], dim=1)
    kinds = torch.cat(
        [
            torch.nn.functional.pad(first["mm_token_type_ids"], (0, 3)),
            second["mm_token_type_ids"],
        ],
        dim=1,
    )
    base = model.base_model
    positions, base.rope_deltas = base.get_rope_index(
        ids, kinds, second["image_grid_thw"], first["video_grid_thw"], torch.ones_like(ids)
    )
    past = sequence.shape[1] - 1
    generate_into(
        out,
        model,
        3,
        input_ids=ids[:, past:],
        attention_mask=torch.ones_like(ids),
        position_ids=positions[..., past:],
        past_key_values=out.cache,
        pixel_values=second["pixel_values"],
        image_grid_thw=second["image_grid_thw"],
    )
    return out, past


def test_image_after_a_video() -> None:
    """Only the image is pruned: the video's tokens lie in the cache like text."""
    model = FAMILY.model()
    with torch.no_grad():
        stock, past = _image_after_video(model)
        every = erase.EraseConfig(**{**BASE_CONFIG, "keep_ratio": 1.0, "force_gathers": True})
        with erase.prune(model, every):
            got, _ = _image_after_video(model)
        assert_same_logits(got, stock)
        with erase.prune(model, erase.EraseConfig(**BASE_CONFIG)) as session:
            _image_after_video(model)
    (row,) = session.report.rows
    assert [len(image.entropy) for image in row.images] == [42]
    assert min(row.kept.tolist()) > past
    assert len(row.kept) == int(42 * BASE_CONFIG["keep_ratio"])
    (length,) = set(session.report.kv_lengths)
    assert length == stock.cache.get_seq_length() - 2 - 42 + len(row.kept)
