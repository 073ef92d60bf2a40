"""Further ways to use a model that must work: search, several samples, training, embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

import erase
from tests.hf.calls import Outcome, generate_into, greedy, text_labels
from tests.hf.cases import BASE_CONFIG, Case, by_name
from tests.hf.common import assert_reports, limits, run_oracle, run_pruned, run_stock
from tests.models import FAMILIES, build_model, shared_model
from tests.oracle import Oracle
from tests.prompts import Prompt, chat_processor, encode, page, photo

HOOKS_OUTSIDE_CHECKPOINT = "__call__" not in vars(GradientCheckpointingLayer)
"""Older transformers replay a layer's hooks in the backward pass, when the prefill is long over."""
GRADIENT_TOLERANCE = 1e-4
"""Relative to the largest gradient of a tensor, fp32."""


def two_rows() -> Prompt:
    return encode([[photo(5, 6), "Describe the image."], [page(6, 7), "Read the page, please."]])


def repeated(images: list, times: int) -> list:
    """One image per row, each row repeated as beams and samples repeat it."""
    return [image for image in images for _ in range(times)]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True, "top_k": 20},
    ],
    ids=["beams", "beams_returned", "samples"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_rows(family: str, options: dict[str, Any]) -> None:
    """Every prompt row becomes several cache rows, images and all."""

    def search(model: Any) -> Any:
        torch.manual_seed(5)
        extra = {"output_scores": True, "return_dict_in_generate": True}
        return model.generate(**two_rows().inputs, **options, **extra, max_new_tokens=6)

    config = erase.EraseConfig(**BASE_CONFIG)
    times = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    images = repeated(two_rows().images, times)
    with torch.no_grad():
        stock = search(shared_model(family))
        with Oracle(shared_model(family, "eager"), config, images) as oracle:
            want = search(shared_model(family, "eager"))
        with erase.prune(shared_model(family), config, chat_processor()) as session:
            got = search(shared_model(family))
    limit = limits(by_name("ragged_batch"), family)
    assert_reports(list(session.reports), oracle.turns, kv=True, limit=limit)
    assert torch.equal(got.sequences, want.sequences)
    assert not torch.equal(got.sequences, stock.sequences)
    if "num_beams" in options:
        scores = (got.sequences_scores, want.sequences_scores)
        torch.testing.assert_close(*scores, rtol=0, atol=limit.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup(family: str) -> None:
    """Assisted decoding feeds several tokens at once and crops the cache; tokens stay greedy."""
    prompt = encode([[photo(5, 6), "one two three one two three one two three one two"]])
    case = Case("greedy", lambda: [prompt], greedy, ((3,),))
    wanted = run_pruned(case, family).outcome.tokens[0]
    config = erase.EraseConfig(**BASE_CONFIG)
    with torch.no_grad(), erase.prune(shared_model(family), config, chat_processor()) as session:
        out = Outcome()
        generate_into(out, shared_model(family), prompt_lookup_num_tokens=3, **prompt.inputs)
    assert torch.equal(out.tokens[0], wanted)
    assert session.prefills_pruned == 1


@pytest.mark.parametrize("checkpointing", [False, True] if HOOKS_OUTSIDE_CHECKPOINT else [False])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family: str, use_cache: bool, checkpointing: bool) -> None:
    """Loss and gradients of a pruned forward are those of the masked one."""
    case = by_name("labels_batch")
    config = erase.EraseConfig(**BASE_CONFIG)

    def train(model: Any) -> dict[str, torch.Tensor]:
        model.requires_grad_(True)
        prompt = case.build()[0]
        labels = text_labels(prompt, model.config.image_token_id)
        loss = model(**prompt.inputs, labels=labels, use_cache=use_cache).loss
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach()[None], **grads}

    masked, pruned = build_model(family, "eager"), build_model(family, "sdpa")
    with Oracle(masked, config, case.build()[0].images) as oracle:
        want = train(masked)
    if checkpointing:
        pruned.gradient_checkpointing_enable()
        pruned.train()
    with erase.prune(pruned, config, chat_processor()) as session:
        got = train(pruned)
    for row, chosen in zip(session.report.rows, oracle.turns[0].rows, strict=True):
        assert (row.layer, row.kept.tolist()) == (chosen.layer, chosen.kept)
    # Autograd still needs the keys and values, so they must not be overwritten.
    assert "compact_kv_" not in session.report.backends
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        limit = GRADIENT_TOLERANCE * float(gradient.abs().max())
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_embeddings(family: str) -> None:
    """Embeddings instead of ids: placeholders are found by their embedding, as the model does."""
    model, prompt = shared_model(family), two_rows()
    config = erase.EraseConfig(**BASE_CONFIG)
    inputs = dict(prompt.inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad(), erase.prune(model, config, chat_processor()) as session:
        by_ids = model(input_ids=ids, **inputs)
        positions, _ = model.model.get_rope_index(ids, **inputs)
        embeddings = model.get_input_embeddings()(ids)
        by_embeddings = model(inputs_embeds=embeddings, position_ids=positions, **inputs)
    first, second = session.reports
    assert [row.kept.tolist() for row in first.rows] == [row.kept.tolist() for row in second.rows]
    assert torch.equal(by_ids.logits[:, -1], by_embeddings.logits[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions(family: str) -> None:
    """Recorded outputs have the length that each layer really ran on."""
    model, case = shared_model(family, "eager"), by_name("greedy_photo")
    prompt, config = case.build()[0], erase.EraseConfig(**BASE_CONFIG)
    with torch.no_grad(), erase.prune(model, config, chat_processor()) as session:
        plain = model(**prompt.inputs)
        out = model(**prompt.inputs, output_hidden_states=True, output_attentions=True)
    row = session.report.rows[0]
    text = prompt.length - row.visual_tokens
    before, after = text + len(row.candidates), text + len(row.kept)
    layer = row.layer
    widths = [before] * (layer + 1) + [after] * (len(out.attentions) - layer - 1)
    assert [a.shape[-1] for a in out.attentions] == widths
    assert [h.shape[1] for h in out.hidden_states[: layer + 1]] == [before] * (layer + 1)
    assert torch.equal(out.logits, plain.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    """Entropies do not depend on the model's dtype; tokens do, so only choices of stage 1 match."""
    case = by_name("ragged_batch")
    model = build_model("qwen2_5_vl").to(dtype)
    config = erase.EraseConfig(**case.settings())
    _, oracle = run_oracle(case, "qwen2_5_vl")
    with torch.no_grad(), erase.prune(model, config, chat_processor()) as session:
        out = case.call(model, case.build())
    assert all(bool(torch.isfinite(step).all()) for step in out.logits)
    for got, want in zip(session.report.rows, oracle.turns[0].rows, strict=True):
        assert [i.kept.tolist() for i in got.images] == [i.kept for i in want.images]
        assert len(got.kept) == len(want.kept)
        assert got.layer == want.layer


@pytest.mark.parametrize("family", FAMILIES)
def test_interleaved_conversations(family: str) -> None:
    """Two pruned caches in turn: each keeps its own state."""
    case = by_name("turns_image")
    config = erase.EraseConfig(**BASE_CONFIG)
    model = shared_model(family)
    alone = run_pruned(case, family).outcome
    generate, side = model.generate, encode([[page(6, 7), "Describe the image."]])
    with torch.no_grad(), erase.prune(model, config, chat_processor()):
        checked = model.generate

        def with_side_conversation(**kwargs: Any) -> Any:
            deltas = model.model.rope_deltas
            checked(**side.inputs, max_new_tokens=2, do_sample=False)
            model.model.rope_deltas = deltas  # state of the stock model, not of the cache
            return checked(**kwargs)

        model.generate = with_side_conversation
        try:
            got = case.call(model, case.build())
        finally:
            model.generate = checked
    assert model.generate == generate
    for a, b in zip(got.logits, alone.logits, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_cache_after_the_session(family: str) -> None:
    """A batch of one goes on decoding on its pruned cache when the session is closed."""
    case = by_name("direct_loop_no_mask")
    want, _ = run_oracle(case, family)
    model, prompt = shared_model(family), case.build()[0]
    inputs = {k: v for k, v in prompt.inputs.items() if k != "attention_mask"}
    with torch.no_grad():
        with erase.prune(model, erase.EraseConfig(**case.settings()), chat_processor()):
            result = model(**inputs)
        token = result.logits[:, -1].argmax(-1, keepdim=True)
        step = model(input_ids=token, past_key_values=result.past_key_values)
    logits = step.logits[:, -1].cpu()
    assert float((logits - want.logits[1]).abs().max()) <= limits(case, family).logits
    assert float((logits - run_stock(case, family).logits[1]).abs().max()) > 0.1
