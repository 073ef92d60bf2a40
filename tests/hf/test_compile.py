"""Compiled decoding: one graph without breaks, no compilation per step, prefills uncompiled."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import erase
from tests.hf.calls import Outcome, generate_into
from tests.hf.cases import Case, by_name
from tests.hf.common import FP32, assert_outcomes
from tests.models import build_model
from tests.oracle import Oracle
from tests.prompts import chat_processor

FAMILY = "qwen2_5_vl"
LAYERS = 2
"""Of the models here: compilation takes its time for each of them."""
STAGE2 = {"early_layer": 0, "late_layer": 0}
ROOM = 256
"""Slots of a static cache here."""


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()
    # Hooks that compiled code referred to.
    gc.collect()


def graphs() -> int:
    """Graphs that were compiled; there were no breaks."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@functools.cache
def small_model(attention: str = "sdpa") -> Any:
    return build_model(FAMILY, attention, num_hidden_layers=LAYERS)


def session_of(model: Any, case: Case) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**case.settings(**STAGE2)), chat_processor())


@functools.cache
def oracle_of(case: Case) -> tuple[Outcome, Oracle]:
    """Greedy tokens and logits of the masked model."""
    model, prompt = small_model("eager"), case.build()[0]
    config, out = erase.EraseConfig(**case.settings(**STAGE2)), Outcome()
    with torch.no_grad(), Oracle(model, config, prompt.images) as oracle:
        generate_into(out, model, **prompt.inputs)
    return out, oracle


def new_cache(model: Any) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=ROOM)


@contextlib.contextmanager
def compiled_forward(model: Any, backend: Any = "eager") -> Iterator[None]:
    """The way the transformers documentation compiles a model."""
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    try:
        yield
    finally:
        del model.forward


def steps(model: Any, case: Case, call: Callable[..., Any], cache: Any) -> torch.Tensor:
    """Logits of an uncompiled prefill and of four greedy steps through ``call``, without masks."""
    inputs = case.build()[0].inputs
    result = model(**inputs, past_key_values=cache)
    cache, logits = result.past_key_values, [result.logits[:, -1]]
    start = inputs["attention_mask"].sum(-1, keepdim=True) + model.model.rope_deltas
    for step in range(4):
        result = call(
            input_ids=logits[-1].argmax(-1, keepdim=True),
            position_ids=(start + step)[None].expand(3, -1, -1),
            past_key_values=cache,
        )
        logits.append(result.logits[:, -1])
    return torch.stack(logits)


# -- against the oracle ------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_generate(name: str, attention: str) -> None:
    """generate() with a static cache compiles decoding: one graph for all steps and prompts."""
    case, model = by_name(name), small_model(attention)
    want, oracle = oracle_of(case)
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config, "max_cache_len": ROOM}
    with session_of(model, case):
        for _ in range(2):
            got = Outcome()
            generate_into(got, model, **options, **case.build()[0].inputs)
            assert_outcomes(got, want, oracle, FP32)
            assert graphs() == 1
    del model._compiled_call


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_compiled_forward(name: str, static: bool) -> None:
    """Prefills run uncompiled although forward is compiled as a whole."""
    case, model = by_name(name), small_model()
    want, oracle = oracle_of(case)
    got = Outcome()
    options = {"cache_implementation": "static", "disable_compile": True} if static else {}
    with compiled_forward(model), session_of(model, case):
        generate_into(got, model, **options, **case.build()[0].inputs)
    assert_outcomes(got, want, oracle, FP32)
    assert graphs() == (1 if static else 2)


# -- no more compilation than a stock model ----------------------------------------------------


@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_dynamic_cache(name: str) -> None:
    """As many graphs as the stock model needs: keys of any length are the second one."""
    case, model = by_name(name), small_model()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    steps(model, case, compiled, None)
    stock = graphs()
    torch._dynamo.reset()
    counters.clear()
    with session_of(model, case):
        want = steps(model, case, model, None)
        got = steps(model, case, compiled, None)
        assert graphs() <= stock
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_one_graph_for_all_requests() -> None:
    """Prompts and caches of other lengths need no other graph while the session is open."""
    model = small_model()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    cases = [by_name(name) for name in ("greedy_photo", "greedy_page", "two_images")]
    with session_of(model, cases[0]):
        for case in cases:
            want = steps(model, case, model, new_cache(model))
            with torch._dynamo.config.patch(error_on_recompile=case is not cases[0]):
                got = steps(model, case, compiled, new_cache(model))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert graphs() == 1


@pytest.mark.parametrize("static", [True, False])
def test_compiled_before_and_after_the_session(static: bool) -> None:
    """Code compiled for a stock cache is not used on a pruned one, nor the other way round."""
    case, model = by_name("ragged_batch"), small_model()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        caches = [new_cache(model) if static else None for _ in range(2)]
        return tuple(
            steps(model, case, call, cache)
            for call, cache in zip((model, compiled), caches, strict=True)
        )

    stock = both()
    with session_of(model, case):
        pruned = both()
    again = both()
    for want, got in (stock, pruned, again):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert torch.equal(stock[0], again[0])
    assert float((stock[0] - pruned[0]).abs().max()) > 0.1


# -- what is compiled elsewhere ----------------------------------------------------------------


def test_single_layers_compiled() -> None:
    """Compiled layers run uncompiled during a prefill, and compiled afterwards."""
    case, model = by_name("greedy_photo"), build_model(FAMILY, num_hidden_layers=LAYERS)
    ran = []

    def backend(graph: Any, example: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    layers = model.model.language_model.layers
    with session_of(model, case):
        want = steps(model, case, model, new_cache(model))
        for layer in layers:
            layer.compile(backend=backend)
        got = steps(model, case, model, new_cache(model))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert len(ran) == 4 * len(layers)


def test_prefill_within_compiled_code() -> None:
    """It cannot be part of a graph, which is said; where breaks are allowed it prunes."""
    case, model = by_name("greedy_photo"), small_model()
    inputs = case.build()[0].inputs
    with session_of(model, case) as session:
        want = model(**inputs).logits[:, -1]
        whole = torch.compile(model.forward, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="prefill reads its plan"):
            whole(**inputs)
        got = torch.compile(model.forward, backend="eager")(**inputs)
        assert session.prefills_pruned == 2
    torch.testing.assert_close(got.logits[:, -1], want, rtol=0, atol=1e-5)


def test_text_prompts_compiled() -> None:
    """A prompt without images compiles, and one with image tokens but no pixels fails in it."""
    case, model = by_name("greedy_photo"), small_model()
    ids = case.build()[0].inputs["input_ids"]
    text = ids[:, -4:]
    with session_of(model, case):
        compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
        want = model(input_ids=text).logits
        torch.testing.assert_close(compiled(input_ids=text).logits, want, rtol=0, atol=1e-5)
        assert graphs() == 1
        with pytest.raises(RuntimeError, match="pixel_values"):
            compiled(input_ids=ids)
        with compiled_forward(model):
            assert torch.equal(model(input_ids=text).logits, want)
            with pytest.raises(ValueError, match="pixel_values"):
                model(input_ids=ids)


def test_compiled_again_after_an_error() -> None:
    """A prefill that fails leaves neither hooks nor the compiler switched off."""
    case, model = by_name("greedy_photo"), small_model()
    inputs = case.build()[0].inputs
    layers = model.model.language_model.layers
    with compiled_forward(model), session_of(model, case):
        bad = {**inputs, "pixel_values": inputs["pixel_values"] + 0.5}
        with pytest.raises(ValueError, match="pixel_values"):
            model(**bad)
        assert not any(layer._forward_pre_hooks for layer in layers)
        steps(model, case, model, new_cache(model))
        assert graphs() == 1


# -- inductor ----------------------------------------------------------------------------------


def test_inductor() -> None:
    """Machine code gives the tokens and logits of the oracle."""
    case, model = by_name("ragged_batch"), small_model()
    want, oracle = oracle_of(case)
    config, got = CompileConfig(backend="inductor", fullgraph=True, mode="default"), Outcome()
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config, "max_cache_len": ROOM}
    with session_of(model, case):
        generate_into(got, model, **options, **case.build()[0].inputs)
    del model._compiled_call
    assert graphs() == 1
    assert_outcomes(got, want, oracle, FP32)
