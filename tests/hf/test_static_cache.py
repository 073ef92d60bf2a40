"""Static caches: one turn, pruned in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

import erase
from tests.hf.calls import FORCED_TOKENS, Outcome, generate_into
from tests.hf.cases import BASE_CONFIG, Case, by_name
from tests.hf.common import (
    assert_outcomes,
    assert_reports,
    differs_clearly,
    limits,
    run_oracle,
    run_stock,
)
from tests.hf.place import DEVICE
from tests.hf.static import STATIC, Inputs, loop, new_cache, positions, session_of
from tests.hf.watch import Watch
from tests.models import FAMILIES, TEXT_LAYERS, shared_model
from tests.oracle import Oracle
from tests.prompts import Prompt, chat_processor, encode, page, photo

GENERATED = ("greedy_photo", "greedy_page", "two_images", "ragged_batch", "padded_row", "sampled")
LOOPS = ("greedy_photo", "ragged_batch", "padded_row")
IMPLEMENTATIONS = ("sdpa", "eager")


def compare(got: Outcome, session: Any, case: Case, family: str, *, want: Any = None) -> None:
    """With the oracle: choices, tokens, logits, and how many slots every layer has filled."""
    outcome, oracle = want or run_oracle(case, family)
    limit = limits(case, family)
    assert_outcomes(got, outcome, oracle, limit)
    assert_reports(list(session.reports), oracle.turns, kv=True, limit=limit)
    longest = max(oracle.turns[0].valid_after) + got.generated
    lengths = [int(layer.cumulative_length) for layer in got.cache.layers]
    assert lengths == [longest] * TEXT_LAYERS
    assert int(got.cache.get_seq_length()) == got_tokens(oracle)


def got_tokens(oracle: Oracle) -> int:
    """Tokens fed, evicted ones included."""
    return oracle.kept_columns.shape[1]


# -- generate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GENERATED)
def test_generate(name: str, family: str, implementation: str) -> None:
    """generate() makes the cache and prebuilds its masks."""
    case, model = by_name(name), shared_model(family, implementation)

    def call(model: Any, prompts: list[Prompt]) -> Outcome:
        out = Outcome()
        sampling: Inputs = {"do_sample": False}
        if name == "sampled":
            torch.manual_seed(11)
            sampling = {"do_sample": True, "temperature": 0.9, "top_k": 50}
        inputs = prompts[0].inputs
        generate_into(out, model, **STATIC, **sampling, **inputs)
        return out

    with torch.no_grad(), session_of(model, case) as session:
        got = call(model, case.build())
    assert isinstance(got.cache, StaticCache)
    compare(got, session, case, family)
    assert differs_clearly(got, run_stock(case, family), run_oracle(case, family)[1])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2}])
def test_expanded_rows(options: Inputs) -> None:
    """Beams and samples: rows of the cache are reordered."""
    rows = [[photo(5, 6), "Describe the image."], [page(6, 7), "Read the page, please."]]
    case, family = by_name("ragged_batch"), "qwen2_5_vl"
    config = erase.EraseConfig(**case.settings())

    def search(model: Any, **more: Any) -> torch.Tensor:
        torch.manual_seed(5)
        extra = {"do_sample": "num_beams" not in options, "max_new_tokens": 6}
        return model.generate(**encode(rows).inputs, **options, **extra, **more)

    times = max(options.values())
    images = [image for image in encode(rows).images for _ in range(times)]
    with torch.no_grad():
        with Oracle(shared_model(family, "eager"), config, images) as oracle:
            want = search(shared_model(family, "eager"))
        with erase.prune(shared_model(family), config, chat_processor()) as session:
            got = search(shared_model(family), **STATIC)
    assert_reports(list(session.reports), oracle.turns, kv=True, limit=limits(case, family))
    assert torch.equal(got, want)


# -- loops -------------------------------------------------------------------------------------


def oracle_loop(case: Case, family: str, style: str = "mask") -> tuple[Outcome, Oracle]:
    config = erase.EraseConfig(**case.settings())
    model, prompts = shared_model(family, "eager"), case.build()
    with torch.no_grad(), Oracle(model, config, prompts[0].images) as oracle:
        return loop(model, prompts, style=style), oracle


@pytest.mark.parametrize("style", ["mask", "none", "hole"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LOOPS)
def test_loop(name: str, family: str, style: str) -> None:
    """A user's cache, with the whole mask at every step, with none, or with a hole in it."""
    case, model = by_name(name), shared_model(family)
    want = oracle_loop(case, family, "mask" if style == "none" else style)
    cache = new_cache(model, case.build()[0].length + 4)
    with torch.no_grad(), session_of(model, case) as session:
        got = loop(model, case.build(), cache, style)
    if style != "hole":
        compare(got, session, case, family, want=want)
    else:
        assert_outcomes(got, *want, limits(case, family))


def test_smaller_cache_saves_memory() -> None:
    """Room for what is left is enough; the report counts what the tensors have."""
    case, family = by_name("greedy_page"), "qwen2_5_vl"
    want, oracle = oracle_loop(case, family)
    row = oracle.turns[0].rows[0]
    prompt = case.build()[0]
    entered = prompt.length - len(row.visual) + len(row.stage1)
    assert max(oracle.turns[0].valid_after) + len(FORCED_TOKENS) < entered < prompt.length
    model = shared_model(family)
    with torch.no_grad(), session_of(model, case) as session:
        with pytest.raises(ValueError, match=f"at least {entered}.*got {entered - 1}"):
            loop(model, case.build(), new_cache(model, entered - 1))
        assert session.prefills_pruned == 0
        got = loop(model, case.build(), new_cache(model, entered))
    compare(got, session, case, family, want=(want, oracle))
    slot = sum(t[0, :, 0].numel() * 4 for x in got.cache.layers for t in (x.keys, x.values))
    for measured in (session.report.kv_bytes, session.report.kv_storage_bytes):
        assert measured.before == slot * prompt.length
        assert measured.after_prefill == measured.after_first_decode == slot * entered


@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_addresses_stay(name: str) -> None:
    """Eviction happens in place, and after reset() the same cache serves another prompt."""
    case, family = by_name(name), "qwen2_5_vl"
    want, model = oracle_loop(case, family), shared_model(family)
    prompts = case.build()
    room = prompts[0].length + 4
    cache = new_cache(model, room)
    heads = model.config.get_text_config()
    size = (prompts[0].inputs["input_ids"].shape[0], heads.num_key_value_heads, 16)
    cache.early_initialization(*size, torch.float32, DEVICE)

    def addresses() -> list[int]:
        tensors = [(x.keys, x.values, x.cumulative_length) for x in cache.layers]
        return [t.data_ptr() for group in tensors for t in group]

    before, own = addresses(), type(cache)
    with torch.no_grad():
        for _ in range(2):
            with session_of(model, case) as session:
                got = loop(model, case.build(), cache)
            compare(got, session, case, family, want=want)
            assert addresses() == before
            assert type(cache) is not own
            cache.reset()
            assert type(cache) is own
            assert not hasattr(cache, "_erase")


def test_identity() -> None:
    """keep_ratio=1 changes nothing, and forced gathers change nothing either."""
    case, model = by_name("ragged_batch"), shared_model("qwen2_5_vl")
    room = case.build()[0].length + 4
    with torch.no_grad():
        stock = loop(model, case.build(), new_cache(model, room))
        for forced in (False, True):
            with session_of(model, case, keep_ratio=1.0, force_gathers=forced):
                got = loop(model, case.build(), new_cache(model, room))
            for a, b in zip(got.logits, stock.logits, strict=True):
                assert torch.equal(a, b) or float((a - b).abs().max()) == 0


@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_nothing_is_read(name: str) -> None:
    """One read per prefill, although the cache was used before; none per step."""
    case, model = by_name(name), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    mask = inputs["attention_mask"]
    cache = new_cache(model, 400)
    reads = {}
    with torch.no_grad():
        for pruned in (False, True):
            cache.reset()
            with Watch() as stock:
                model(**inputs, past_key_values=cache)
            if pruned:
                break
            cache.reset()
            with session_of(model, case), Watch() as watch:
                model(**inputs, past_key_values=cache)
            with session_of(model, case):
                cache.reset()
                model(**inputs, past_key_values=cache)
                grown = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                position = grown.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
                with Watch() as step:
                    model(
                        input_ids=torch.full_like(mask[:, :1], 300),
                        attention_mask=grown,
                        position_ids=position[None].expand(3, -1, -1),
                        past_key_values=cache,
                    )
            reads = {"prefill": watch, "step": step}
    extra = reads["prefill"].reads - stock.reads
    assert extra.total() <= 1, extra
    assert reads["prefill"].from_host == {}
    assert reads["step"].reads == {}
    assert BASE_CONFIG["keep_ratio"] < 1


def test_gradients_reach_the_prompt() -> None:
    """With autograd the keys it saved are not overwritten."""
    case, model = by_name("labels_batch"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_(True)
    given = {k: v for k, v in inputs.items() if k != "input_ids"}
    given["position_ids"] = positions(model, inputs)
    gradients = []
    with session_of(model, case):
        for cache in (None, new_cache(model, 300)):
            result = model(inputs_embeds=embeddings, past_key_values=cache, **given)
            result.logits[:, -1].square().sum().backward()
            gradients.append(embeddings.grad.clone())
            embeddings.grad = None
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
