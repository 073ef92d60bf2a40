"""No prompt with images goes unpruned in silence: what hooks cannot see is raised or warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

import erase
from tests.hf.calls import NEW_TOKENS, Outcome, generate_into
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.common import assert_outcomes, run_oracle
from tests.models import build_model, shared_model
from tests.prompts import Prompt, encode, photo

GREEDY = {"max_new_tokens": 3, "do_sample": False}
NEEDS_ENCODED = (
    "mm_encoder_outputs"
    in shared_model("qwen2_5_vl").model.forward.__wrapped__.__code__.co_varnames
)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def prune(model: Any, **fields: Any) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**{**BASE_CONFIG, **fields}))


def prompt() -> Prompt:
    return encode([[photo(5, 6), "Describe the image."]])


# -- hooks that do not run -----------------------------------------------------------------------


def test_forward_of_the_base_model_itself() -> None:
    model = shared_model("qwen2_5_vl")
    with prune(model) as session:
        with pytest.raises(RuntimeError, match="past its hooks"):
            model.model.forward(**prompt().inputs)
        assert session.prefills_seen == 0
        model.forward(**prompt().inputs)  # of the model with its head: the hooks are inside
        assert session.prefills_pruned == 1
        model.model.forward(**encode([["Hello there."]]).inputs)  # nothing to prune


def test_forward_of_the_decoder_itself() -> None:
    model = build_model("qwen2_5_vl")
    stack = model.model.language_model

    class Past(torch.nn.Module):
        def forward(self, **kwargs: Any) -> Any:
            return stack.forward(**kwargs)

    with prune(model) as session:
        model.model.get_input_embeddings = lambda: stack.embed_tokens
        model.model.language_model = Past()
        with pytest.raises(RuntimeError, match="past its hooks"):
            model(**prompt().inputs)
        model.model.language_model = stack
        assert (session.prefills_seen, session.prefills_pruned) == (1, 0)


def test_another_decoder() -> None:
    model, other = build_model("qwen2_5_vl"), build_model("qwen2_5_vl")
    with prune(model) as session:
        model.model.language_model = other.model.language_model
        with pytest.warns(UserWarning, match="was not pruned: the decoder was called past"):
            model.generate(**prompt().inputs, **GREEDY)
        assert (session.prefills_seen, session.prefills_pruned) == (1, 0)


def test_hooks_taken_away() -> None:
    model = build_model("qwen2_5_vl")
    with prune(model):
        model.model._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="past its hooks"):
            model.generate(**prompt().inputs, **GREEDY)
    with prune(model):
        model.model.language_model._forward_hooks.clear()
        with pytest.warns(UserWarning, match="was not pruned"):
            model(**prompt().inputs)


def interrupted(model: Any) -> None:
    """A prefill that somebody stops: torch runs no hooks after that."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(**prompt().inputs)
    handle.remove()


def interrupted_and_worse(model: Any) -> None:
    with prune(model):
        interrupted(model)
        raise ZeroDivisionError


def test_interrupts_are_told() -> None:
    model = shared_model("qwen2_5_vl")
    with prune(model) as session:
        interrupted(model)
        with pytest.warns(UserWarning, match="was not pruned: it was interrupted"):
            model(**prompt().inputs)
        assert (session.prefills_seen, session.prefills_pruned) == (2, 1)
        interrupted(model)
        with pytest.warns(UserWarning, match="was not pruned: it was interrupted"):
            session.remove()


def test_nothing_to_tell() -> None:
    """No warning after an exception, nor where all went well."""
    model = shared_model("qwen2_5_vl")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with prune(model) as session:
            inputs = prompt().inputs
            inputs["input_ids"][inputs["input_ids"] == model.config.image_token_id] = 300
            with pytest.raises(ValueError, match="token"):
                model(**inputs)
            model(**prompt().inputs)
            model(**encode([["Hello there."]]).inputs)
            assert (session.prefills_seen, session.prefills_pruned) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            interrupted_and_worse(model)  # an exception is on its way: it tells enough


# -- plans and images that cannot work -----------------------------------------------------------


def test_layer_without_attention() -> None:
    """As a linear layer of a hybrid: refused when the session opens, and by override."""
    model = build_model("qwen2_5_vl")
    layer = model.model.language_model.layers[BASE_CONFIG["late_layer"]]
    attention = layer.self_attn
    del layer.self_attn
    try:
        with pytest.raises(ValueError, match="late_layer: layer 3 is a linear-attention layer"):
            prune(model)
        session = prune(model, late_layer=4)
        with session, pytest.raises(ValueError, match="late_layer"):
            session.override(late_layer=3).__enter__()
        for stage1_only in ({"stage2": False}, {"keep_ratio": None}):
            prune(model, **stage1_only).remove()
    finally:
        layer.self_attn = attention


@pytest.mark.parametrize("cut", ["inside the image", "after the image"])
def test_chunks_of_a_prompt(cut: str) -> None:
    """A chunk with a part of an image is refused; a whole image in its chunk is pruned."""
    model, inputs = shared_model("qwen2_5_vl"), prompt().inputs
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()
    end = int(image[3 if cut == "inside the image" else -1]) + 2
    sequences = ("input_ids", "attention_mask", "mm_token_type_ids")
    chunk = {k: v[:, :end] if k in sequences else v for k, v in inputs.items()}
    with prune(model) as session:
        if cut == "inside the image":
            with pytest.raises(ValueError, match="token"):
                model(**chunk)
        else:
            model(**chunk)
        assert session.prefills_pruned == (cut == "after the image")


if NEEDS_ENCODED:

    def test_encoded_images_without_their_entropies() -> None:
        """As chunked prefill slices them: only what the model itself put there."""
        model, inputs = shared_model("qwen2_5_vl"), prompt().inputs
        with prune(model) as session:
            pixels, grid = inputs.pop("pixel_values"), inputs["image_grid_thw"]
            whole = model.model.get_image_features(pixels, grid)
            part = BaseModelOutputWithPooling(pooler_output=whole.pooler_output)
            for call in (model, model.generate):
                with pytest.raises(ValueError, match="mm_encoder_outputs"):
                    call(**inputs, mm_encoder_outputs={"image": part})
            assert session.prefills_pruned == 0
            model(**inputs, mm_encoder_outputs={"image": whole})
            assert session.prefills_pruned == 1


# -- a session on the base model, generate() of the model around it ------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"use_cache": False}, "use_cache"),
        ({"generation_config": GenerationConfig(use_cache=False, max_new_tokens=2)}, "use_cache"),
        # Its chunks come without entropies, or without pixels.
        ({"prefill_chunk_size": 8}, "mm_encoder_outputs|pixel_values"),
    ],
)
def test_outer_generate(options: dict[str, Any], name: str) -> None:
    model = shared_model("qwen2_5_vl")
    with prune(model.model), pytest.raises((ValueError, RuntimeError), match=name):
        model.generate(**prompt().inputs, **{**GREEDY, **options})


def test_outer_assisted_generate() -> None:
    """Drafted tokens, which the base model takes for a part of the prompt, choose nothing."""
    model, case = shared_model("qwen2_5_vl"), by_name("greedy_photo")
    outcome = Outcome()
    with prune(model.model) as session:
        inputs = case.build()[0].inputs
        generate_into(outcome, model, NEW_TOKENS, prompt_lookup_num_tokens=3, **inputs)
    want, oracle = run_oracle(case, "qwen2_5_vl")
    assert session.report.rows[0].kept.tolist() == oracle.turns[0].rows[0].kept
    assert_outcomes(outcome, want, oracle)
