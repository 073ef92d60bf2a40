"""Edges of the integration: interrupts, copies, drafts, closed sessions, foreign models."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, Llama4VisionConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

import erase
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import limits
from tests.hf.place import DEVICE
from tests.models import build_model, shared_model
from tests.oracle import Oracle
from tests.prompts import Prompt, chat_processor, encode, photo

FAMILY = "qwen2_5_vl"


def config(**fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **fields})


def prompt(**options: Any) -> Prompt:
    return encode([[photo(5, 6), "Describe the image."]], **options)


def greedy(model: Any, inputs: dict[str, Any], tokens: int = 6, **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def test_interrupt_does_not_reach_the_next_request() -> None:
    """torch runs no hook after a KeyboardInterrupt, so the next forward must clear up."""
    model, inputs = build_model(FAMILY), prompt().inputs

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    text = {
        "input_ids": torch.full_like(inputs["input_ids"], 300),
        "attention_mask": inputs["attention_mask"],
    }
    stock = model(**text).logits
    with erase.prune(model, config(), processor=chat_processor()) as session:
        handle = model.model.language_model.layers[0].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            greedy(model, inputs)
        handle.remove()
        assert torch.equal(model(**text).logits, stock)
        assert session.report is None


@pytest.mark.parametrize("seed", range(6))
def test_drafted_tokens_do_not_choose(seed: int) -> None:
    """Prompt lookup feeds drafts together with the prompt; the answer is still the greedy one."""
    question = ("What is what is what is", "a b a b a b a", "Describe the image. Describe the")
    picture = photo(5, 6, 7 * seed % 30, 11 * seed % 30)
    inputs = encode([[picture, question[seed % 3]]]).inputs
    model = shared_model(FAMILY)
    with erase.prune(model, config(keep_ratio=0.1 + 0.05 * seed)) as session:
        alone = greedy(model, inputs, 10)
        drafted = greedy(model, inputs, 10, prompt_lookup_num_tokens=4)
        first, second = (report.rows[0].kept for report in session.reports)
    assert torch.equal(first, second)
    assert torch.equal(alone, drafted)


# -- caches that outlive something -------------------------------------------------------------


def next_tokens(model: Any, cache: Any, mask: torch.Tensor, fed: int) -> torch.Tensor:
    """Logits of two more tokens at their places in the unpruned sequence."""
    ids = torch.tensor([[21, 22]], device=DEVICE)
    positions = torch.arange(fed, fed + 2, device=DEVICE).expand(3, 1, -1)
    return model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits


def pruned_cache(model: Any, inputs: dict[str, Any], **fields: Any) -> tuple[erase.Session, Any]:
    session = erase.prune(model, config(**fields), processor=chat_processor())
    return session, model(**inputs, use_cache=True).past_key_values


def test_cache_of_a_closed_session() -> None:
    """A full row goes on without the session, whatever the user's mask says of later tokens."""
    model, inputs = build_model(FAMILY), prompt().inputs
    fed = inputs["input_ids"].shape[1]
    for new in ([1, 1], [0, 1]):
        later = torch.tensor([new], device=DEVICE)
        mask = torch.cat([inputs["attention_mask"], later], dim=1)
        answers = []
        for close in (False, True):
            session, cache = pruned_cache(model, inputs)
            if close:
                session.remove()
            answers.append(next_tokens(model, cache, mask, fed)[:, -1])
            session.remove()
        limit = limits(by_name("direct_loop_no_mask"), FAMILY).logits
        torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=limit)


def test_padded_cache_of_a_closed_session_is_refused() -> None:
    """Its padding was dropped, so the user's mask no longer fits; only the session knows."""
    model, inputs = build_model(FAMILY), dict(prompt().inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = torch.nn.functional.pad(inputs[name], (3, 0))
    session, cache = pruned_cache(model, inputs)
    session.remove()
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
    with pytest.raises(RuntimeError, match="session"):
        next_tokens(model, cache, mask, mask.shape[1] - 2)


def test_crop() -> None:
    """Generated tokens can be taken back; the pruned prompt cannot be cut into."""
    model, inputs = build_model(FAMILY), prompt().inputs
    fed = inputs["input_ids"].shape[1]
    session, cache = pruned_cache(model, inputs)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
    first = next_tokens(model, cache, mask, fed)
    with pytest.raises(ValueError, match="tokens_to_remove"):
        cache.crop(-3)
    cache.crop(-2)
    assert torch.equal(next_tokens(model, cache, mask, fed), first)
    session.remove()


def test_shallow_copies_of_a_cache_do_not_share_rows() -> None:
    model = build_model(FAMILY)
    rows = encode([[photo(5, 6), "Describe."], [photo(3, 4), "What is in the image, please?"]])
    session, cache = pruned_cache(model, rows.inputs)
    other = copy.copy(cache)
    cache.batch_repeat_interleave(2)
    assert len(cache._erase.valid) == 4
    assert len(other._erase.valid) == 2
    session.remove()


# -- copies and other models ---------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_open_session_cannot_be_copied(duplicate: Callable[[Any], Any]) -> None:
    """A copy would run the original's weights through the original's hooks."""
    model = build_model(FAMILY)
    with (
        erase.prune(model, config()),
        pytest.raises(TypeError, match=r"model: .* open pruning session"),
    ):
        duplicate(model)
    assert torch.equal(copy.deepcopy(model).lm_head.weight, model.lm_head.weight)


def test_foreign_eager_models_keep_their_attention() -> None:
    """Some files call their eager function another name; ours must still find it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    pixels = {"image_size": 28, "patch_size": 14, "intermediate_size": 128}
    projector = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    tower = Llama4VisionModel._from_config(
        Llama4VisionConfig(**sizes, **pixels, **projector), attn_implementation="eager"
    ).eval()
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = tower(image).last_hidden_state
    with erase.prune(shared_model(FAMILY, "eager"), config()):
        assert torch.equal(tower(image).last_hidden_state, before)


def test_model_dropped_with_its_session_open() -> None:
    registry = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    model = build_model(FAMILY)
    erase.prune(model, config())
    assert registry != ALL_ATTENTION_FUNCTIONS._local_mapping
    del model
    gc.collect()
    assert registry == ALL_ATTENTION_FUNCTIONS._local_mapping


def test_somebody_elses_patch_survives() -> None:
    model = build_model(FAMILY)
    session = erase.prune(model, config())
    theirs = model.generate = lambda *_, **__: "theirs"
    session.remove()
    assert model.generate is theirs


# -- requests ----------------------------------------------------------------------------------


def test_overlapping_overrides() -> None:
    with erase.prune(shared_model(FAMILY), config(keep_ratio=0.25)) as session:
        first, second = session.override(keep_ratio=0.1), session.override(keep_ratio=0.5)
        with first:
            second.__enter__()
            assert session.method.keep_ratio == 0.5
        assert session.method.keep_ratio == 0.5
        second.__exit__(None, None, None)
        assert session.method.keep_ratio == 0.25


@pytest.mark.parametrize("route", ["positional", "model"])
def test_settings_of_generate_by_other_routes(route: str) -> None:
    model, inputs = build_model(FAMILY), dict(prompt().inputs)
    off = GenerationConfig(use_cache=False, max_new_tokens=2)
    if route == "model":
        model.generation_config.use_cache = False
        off = GenerationConfig(max_new_tokens=2, use_cache=None)
    ids = inputs.pop("input_ids")
    with erase.prune(model, config()) as session:
        with pytest.raises(ValueError, match="use_cache"):
            model.generate(ids, off, **inputs)
        assert session.prefills_seen == 0


def test_continuous_batching_is_refused() -> None:
    model = shared_model(FAMILY)
    with erase.prune(model, config()), pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([prompt().inputs["input_ids"][0].tolist()])


@pytest.mark.parametrize("use_cache", [False, True])
def test_masked_image_tokens(use_cache: bool) -> None:
    """Some tokens of an image are hidden by the mask: they are padding, not candidates."""
    pictured = prompt()
    inputs = dict(pictured.inputs)
    image = (inputs["mm_token_type_ids"][0] == 1).nonzero()[:, 0]
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][0, image[[0, 3, 4, 17]]] = 0
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1], device=DEVICE)[None]
    with Oracle(shared_model(FAMILY, "eager"), config(), pictured.images) as oracle:
        want = shared_model(FAMILY, "eager")(**inputs, use_cache=use_cache)
    with erase.prune(shared_model(FAMILY), config()) as session:
        got = shared_model(FAMILY)(**inputs, use_cache=use_cache)
    row, chosen = session.report.rows[0], oracle.turns[0].rows[0]
    assert row.visual_tokens == len(image) - 4
    assert row.images[0].kept.tolist() == chosen.images[0].kept
    assert row.kept.tolist() == chosen.kept
    kept = oracle.kept_columns[0]
    difference = (got.logits - want.logits).abs().amax(-1)[0].cpu()
    assert float(difference[kept].max()) <= limits(by_name("greedy_photo"), FAMILY).logits


def test_images_merged_into_embeddings() -> None:
    """Embeddings that already hold the image cannot be pruned; token types give them away."""
    inputs = prompt().inputs
    model = shared_model(FAMILY)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with erase.prune(model, config()), pytest.raises(ValueError, match="pixel_values"):
        model(inputs_embeds=embeds, mm_token_type_ids=inputs["mm_token_type_ids"])


def test_later_turn_with_image_tokens_but_no_pixels() -> None:
    model, inputs = build_model(FAMILY), prompt().inputs
    session, cache = pruned_cache(model, inputs)
    with session, pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=inputs["input_ids"], past_key_values=cache)


def test_nothing_would_be_left() -> None:
    """A prompt of one image alone, pruned to nothing, has no token to continue from."""
    inputs = dict(prompt().inputs)
    image = inputs["mm_token_type_ids"][0] == 1
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, image]
    model = shared_model(FAMILY)
    few = config(keep_ratio=0.01)
    with erase.prune(model, few), pytest.raises(ValueError, match="input_ids: row 0"):
        model(**inputs)


def test_numpy_numbers_are_plain_numbers() -> None:
    ratio = np.float32(0.29)
    method = config(keep_ratio=ratio, stage1_keep_ratios=[ratio] * 4)
    assert type(method.keep_ratio) is float
    assert json.loads(method.to_json())["stage1_keep_ratios"] == [float(ratio)] * 4
