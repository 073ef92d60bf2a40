"""Pruned videos of the Qwen families: alone and among images, in every turn, against the oracle."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import erase
from tests.families import ALL
from tests.families.qwen2_vl import QwenPrompts
from tests.hf.calls import Outcome, direct, direct_loop, generate_into, greedy
from tests.hf.cases import BASE_CONFIG, NEXT_USER
from tests.hf.common import (
    CLEAR_MARGIN,
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
)
from tests.hf.video_prompts import Clip, VideoPrompt, clip, encode, patches_of, positions_of
from tests.oracle import Oracle
from tests.oracle_choices import Picture
from tests.prompts import page, photo

FAMILIES = tuple(f for f in ALL if f.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"))
QWEN2, QWEN3 = FAMILIES[0], FAMILIES[2]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
CALLS = {"greedy": greedy, "direct": direct, "loop": direct_loop}


@functools.cache
def mixed(family: QwenPrompts) -> list[VideoPrompt]:
    """Images and videos in other orders in each row, one video of three frames, a row of text."""
    first = ["Watch: ", clip(family, 4, 2, 3), photo(3, 4), " and ", clip(family, 3, 2, 2, 5), "?"]
    second = [page(4, 5), " then ", clip(family, 2, 3, 3, 1), " What has changed?"]
    return [encode(family, [first, second, ["Which colour is the sky?"]])]


@functools.cache
def only_videos(family: QwenPrompts) -> list[VideoPrompt]:
    videos = [clip(family, 6, 2, 3, 2), " and ", clip(family, 2, 2, 2, 3)]
    return [encode(family, [[*videos, "Describe both videos."]])]


@functools.cache
def image_then_video(family: QwenPrompts) -> list[VideoPrompt]:
    second = [["And this? ", clip(family, 4, 2, 3), photo(3, 4), " Summarise."]]
    return [
        encode(family, [[photo(4, 5), "Describe the image."]]),
        encode(family, second, head=NEXT_USER),
        encode(family, [["Thank you."]], head=NEXT_USER),
    ]


def settings(**fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **fields})


def turns(model: Any, prompts: list[VideoPrompt]) -> Outcome:
    """Greedy turns on one cache, each with positions of the whole conversation."""
    out = Outcome()
    joined: dict[str, torch.Tensor] = {}
    for turn, prompt in enumerate(prompts, start=1):
        ids = prompt.inputs["input_ids"]
        past = joined["input_ids"].shape[1] if joined else 0
        if joined:
            ids = torch.cat([joined["input_ids"], out.tokens[-1], ids], dim=1)
        joined = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        own = ("input_ids", "attention_mask", "mm_token_type_ids")
        pixels = {k: v for k, v in prompt.inputs.items() if k not in own}
        positions = positions_of(model, joined, prompts[:turn])
        if past:
            past += out.tokens[-1].shape[1] - 1  # the last token is not in the cache yet
            pixels["past_key_values"] = out.cache
        generate_into(out, model, **joined, **pixels, position_ids=positions[:, :, past:])
    return out


def compare(
    family: QwenPrompts, prompts: list[VideoPrompt], call: Any, config: Any, videos: bool = True
) -> erase.Session:
    """Pruned and masked runs agree, and differ clearly from the stock model's."""
    model, eager = family.model(), family.model("eager")
    images = [picture for prompt in prompts for picture in prompt.images]
    clips = [picture for prompt in prompts for picture in prompt.videos]
    with torch.no_grad():
        stock = call(model, prompts)
        with Oracle(eager, config, images, videos=clips if videos else None) as oracle:
            want = call(eager, prompts)
        with erase.prune(model, config, videos=videos) as session:
            got = call(model, prompts)
    assert not oracle.unused_images
    margins = [row.margin for turn in oracle.turns for row in turn.rows if row.margin is not None]
    assert min(margins) > CLEAR_MARGIN, "choose other pictures"
    assert_reports(list(session.reports), oracle.turns, kv=got.cache is not None)
    assert session.prefills_seen == session.prefills_pruned == len(oracle.turns)
    assert_outcomes(got, want, oracle)
    assert_cache(got, oracle)
    assert differs_clearly(got, stock, oracle)
    return session


@pytest.mark.parametrize("call", CALLS)
@every_family
def test_among_images(family: QwenPrompts, call: str) -> None:
    session = compare(family, mixed(family), CALLS[call], settings())
    kinds = [[image.modality for image in row.images] for row in session.report.rows]
    assert kinds == [["image", "video", "video"], ["image", "video"], []]


@pytest.mark.parametrize("query", ["exact", "released"])
@every_family
def test_alone(family: QwenPrompts, query: str) -> None:
    session = compare(family, only_videos(family), greedy, settings(query=query))
    row = session.report.rows[0]
    # One budget for a video, however many slices it has.
    assert [len(image.entropy) for image in row.images] == [18, 4]
    assert len(row.kept) == int(22 * BASE_CONFIG["keep_ratio"])


@every_family
def test_later_turns(family: QwenPrompts) -> None:
    session = compare(family, image_then_video(family), turns, settings())
    kinds = [[i.modality for i in report.rows[0].images] for report in session.reports]
    assert kinds == [["image"], ["image", "video"]]


@every_family
def test_not_pruned_beside_a_pruned_image(family: QwenPrompts) -> None:
    """With DeepStack, planes of images and videos are in one list, and only images lose rows."""
    config = settings(early_layer=0, late_layer=1)
    session = compare(family, mixed(family), direct_loop, config, videos=False)
    assert all(i.modality == "image" for row in session.report.rows for i in row.images)


@every_family
def test_keeping_everything_is_identical(family: QwenPrompts) -> None:
    model = family.model()
    config = settings(keep_ratio=1.0, force_gathers=True)
    with torch.no_grad():
        stock = greedy(model, mixed(family))
        with erase.prune(model, config, videos=True) as session:
            got = greedy(model, mixed(family))
    assert session.prefills_pruned == 1
    assert all(torch.equal(a, b) for a, b in zip(got.logits, stock.logits, strict=True))


@every_family
def test_only_videos_pass_through(family: QwenPrompts) -> None:
    model = family.model()
    with torch.no_grad():
        stock = greedy(model, only_videos(family))
        with erase.prune(model, settings()) as session:
            got = greedy(model, only_videos(family))
    assert (session.prefills_seen, session.report) == (0, None)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, stock.logits, strict=True))


@every_family
def test_beams(family: QwenPrompts) -> None:
    """Every prompt row becomes two cache rows, while videos are encoded once, or twice."""
    first = [clip(family, 4, 2, 3), photo(3, 4), " Describe."]
    prompt = encode(family, [first, [photo(4, 4, 9, 7), clip(family, 4, 2, 2, 1), " Summarise."]])

    def search(model: Any) -> Any:
        options = {"num_beams": 2, "do_sample": False, "max_new_tokens": 5}
        extra = {"output_scores": True, "return_dict_in_generate": True}
        return model.generate(**prompt.inputs, **options, **extra)

    images, videos = (
        [one for one in few for _ in range(2)] for few in (prompt.images, prompt.videos)
    )
    model, eager, config = family.model(), family.model("eager"), settings()
    with torch.no_grad():
        with Oracle(eager, config, images, videos=videos) as oracle:
            want = search(eager)
        with erase.prune(model, config, videos=True) as session:
            got = search(model)
    assert_reports(list(session.reports), oracle.turns, kv=True)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(got.sequences_scores, want.sequences_scores, rtol=0, atol=1e-5)


def test_each_slice_is_scored_from_both_of_its_frames() -> None:
    """A slice is flat only where both frames are: the second one counts, the next slice's not."""
    frames = np.full((4, 64, 64, 3), 40, np.uint8)
    frames[1, :32, :32] = 200
    frames[3, 32:, 32:] = np.arange(32, dtype=np.uint8)[:, None]
    prompt = encode(QWEN3, [[Clip(frames), "Describe."]])
    with torch.no_grad(), erase.prune(QWEN3.model(), settings(), videos=True) as session:
        QWEN3.model()(**prompt.inputs)
    halves = np.log(2.0)
    textured = 0.5 * np.log(2) + 0.5 * np.log(64)  # half of the pixels in one bin, half in 32
    want = [halves, 0, 0, 0, 0, 0, 0, textured]
    np.testing.assert_allclose(session.report.rows[0].images[0].entropy.cpu(), want, atol=1e-6)


def processor_of(family: QwenPrompts, **video: Any) -> SimpleNamespace:
    """Settings of a processor; the stock video processors need torchvision."""
    common = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    common |= {"image_mean": family.mean, "image_std": family.std, "patch_size": family.patch}
    image, videos = SimpleNamespace(**common), SimpleNamespace(**{**common, **video})
    return SimpleNamespace(image_processor=image, video_processor=videos)


def test_videos_have_statistics_of_their_own() -> None:
    prompt = mixed(QWEN2)[0]
    inputs = dict(prompt.inputs)
    plain = SimpleNamespace(name=QWEN2.name, patch=QWEN2.patch, mean=(0.0,) * 3, std=(1.0,) * 3)
    videos = [clip(QWEN2, 4, 2, 3), clip(QWEN2, 3, 2, 2, 5), clip(QWEN2, 2, 3, 3, 1)]
    inputs["pixel_values_videos"] = torch.cat([patches_of(plain, one) for one in videos])
    processor = processor_of(QWEN2, do_normalize=False)
    model = QWEN2.model()
    with torch.no_grad(), erase.prune(model, settings(), processor, videos=True) as session:
        model(**inputs)
    found = [i for row in session.report.rows for i in row.images if i.modality == "video"]
    for got, want in zip(found, prompt.videos, strict=True):
        np.testing.assert_array_equal(got.entropy.cpu().numpy(), want.entropy)
    with pytest.raises(ValueError, match="processor: patch_size is 16, but the model's is 14"):
        erase.prune(model, settings(), processor_of(QWEN2, patch_size=16), videos=True)


@pytest.mark.parametrize("family", [QWEN2, QWEN3], ids=str)
def test_embeddings_without_pixels(family: QwenPrompts) -> None:
    model, inputs = family.model(), dict(only_videos(family)[0].inputs)
    pixels = inputs.pop("pixel_values_videos")
    with torch.no_grad():
        encoded = model.base_model.get_video_features(pixels, inputs["video_grid_thw"])
        given = {**inputs, "mm_encoder_outputs": {"video": encoded}}
        with erase.prune(model, settings(), videos=True) as session:
            for call in (model, model.generate):
                # Older transformers take no embeddings, so there nothing came at all.
                with pytest.raises(ValueError, match=r"video (embeddings came|tokens but no)"):
                    call(**given)
    assert not session.reports


@pytest.mark.parametrize(
    ("missing", "named"),
    [("pixel_values_videos", "video"), ("pixel_values", "image"), ("both", "image")],
)
def test_pixels_that_did_not_come(missing: str, named: str) -> None:
    """Tokens of a modality that is pruned are never silently left alone."""
    model, inputs = QWEN3.model(), dict(mixed(QWEN3)[0].inputs)
    for name in ("pixel_values_videos", "pixel_values"):
        if missing in (name, "both"):
            del inputs[name]
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 3, -1)
    session = erase.prune(model, settings(), videos=True)
    refused = pytest.raises(ValueError, match=f"the prompt has {named} tokens but no pixels")
    with session, refused, torch.no_grad():
        model(**inputs)
    assert not session.reports


def test_oracle_truth_is_of_two_frames() -> None:
    """The pictures that these tests compare with do depend on every frame."""
    truth: list[Picture] = [mixed(QWEN3)[0].videos[0]]
    other = clip(QWEN3, 4, 2, 3).frames.copy()
    other[1] = other[0]
    changed = encode(QWEN3, [[Clip(other)]]).videos[0].entropy != truth[0].entropy
    assert changed[:6].any()
    assert not changed[6:].any()
