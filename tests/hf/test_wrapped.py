"""Models inside wrappers: adapters, compiled modules, data parallelism, holders of one's own.

The oracle of an adapted model is a stock one whose weights have the adapter merged in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import erase
from erase.hf.wrappers import unwrap
from tests.hf.calls import Outcome, direct, generate_into
from tests.hf.cases import BASE_CONFIG, Case, by_name
from tests.hf.common import (
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
    oracle_images,
    run_oracle,
    run_pruned,
    snapshot,
)
from tests.models import build_model, shared_model
from tests.oracle import Oracle
from tests.prompts import chat_processor

FAMILY = "qwen2_5_vl"
GREEDY, DIRECT = by_name("ragged_batch"), by_name("direct")
TARGETS = {
    "first": r".*language_model.*\.(q_proj|k_proj|v_proj)",
    "second": r".*language_model.*\.(q_proj|up_proj|down_proj)",
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def prune(model: Any, **fields: Any) -> erase.Session:
    config = erase.EraseConfig(**{**BASE_CONFIG, **fields})
    return erase.prune(model, config, processor=chat_processor())


def adapted(*names: str, attention: str = "sdpa") -> Any:
    """A PEFT model with the adapters ``names``, the last one active; always the same weights."""
    model = None
    for name in names:
        config = LoraConfig(r=4, target_modules=TARGETS[name], init_lora_weights=False)
        if model is None:
            model = get_peft_model(build_model(FAMILY, attention), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for i, name in enumerate(TARGETS):
        generator = torch.Generator().manual_seed(i)
        for key, weight in model.named_parameters():
            if "lora_" in key and f".{name}." in key:
                values = torch.randn(weight.shape, generator=generator) * 0.1
                weight.data.copy_(values)
    model.set_adapter(names[-1])
    return model.eval()


@functools.cache
def merged_oracle(name: str | None, case: Case, query: str) -> tuple[Outcome, Oracle]:
    """The case on a stock eager model with adapter ``name`` in its weights."""
    if name is None:
        return run_oracle(case, FAMILY, query=query)
    model = adapted(name, attention="eager").merge_and_unload()
    config, prompts = erase.EraseConfig(**case.settings(query=query)), case.build()
    with Oracle(model, config, oracle_images(prompts)) as oracle:
        outcome = case.call(model, prompts)
    return outcome, oracle


def check(
    outcome: Outcome, report: Any, name: str | None, case: Case, query: str = "exact"
) -> None:
    want, oracle = merged_oracle(name, case, query)
    assert_reports([report], oracle.turns, kv=outcome.cache is not None)
    assert_outcomes(outcome, want, oracle)
    assert_cache(outcome, oracle)


# -- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
def test_adapter(merged: bool, query: str) -> None:
    """generate() and forward, through the wrapper and through the model inside it."""
    model = adapted("first")
    inner = model.get_base_model()
    if merged:
        model.merge_adapter()
    before = snapshot(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with prune(model, query=query) as session:
        assert session.architecture.model is inner
        with pytest.raises(ValueError, match="already has an open"):
            prune(inner)
        for entry in (model, inner):
            outcome = GREEDY.call(entry, GREEDY.build())
            check(outcome, session.report, "first", GREEDY, query)
        outcome = direct(model, DIRECT.build())
        check(outcome, session.report, "first", DIRECT, query)
        assert session.prefills_seen == session.prefills_pruned == 3
    assert snapshot(model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    stock = GREEDY.call(model, GREEDY.build())
    want, oracle = merged_oracle("first", GREEDY, query)
    assert differs_clearly(want, stock, oracle)


def test_adapters_change_while_a_session_is_open() -> None:
    """Added, switched, turned off, merged and taken away: each request sees what is there then."""
    model = adapted("first", "second")
    with prune(model) as session:

        def expect(name: str | None) -> None:
            outcome = GREEDY.call(model, GREEDY.build())
            check(outcome, session.report, name, GREEDY)

        expect("second")
        model.set_adapter("first")
        expect("first")
        with model.disable_adapter():
            expect(None)
        model.merge_adapter()
        expect("first")
        model.unmerge_adapter()
        model = model.unload()
        expect(None)


def test_adapter_comes_after_the_session() -> None:
    stock = build_model(FAMILY)
    with prune(stock) as session:
        config = LoraConfig(r=4, target_modules=TARGETS["first"], init_lora_weights=False)
        model = get_peft_model(stock, config, adapter_name="first")
        weights = adapted("first").state_dict()
        model.load_state_dict(weights)
        outcome = GREEDY.call(model.eval(), GREEDY.build())
        check(outcome, session.report, "first", GREEDY)


@pytest.mark.parametrize("part", ["model", "language_model"])
def test_adapter_around_a_part(part: str) -> None:
    """Only the vision-language model, or only its decoder, is wrapped."""
    model = build_model(FAMILY)
    owner = model if part == "model" else model.model
    targets = r".*\.(q_proj|k_proj|v_proj)"
    config = LoraConfig(r=4, target_modules=targets, exclude_modules=r".*visual.*")
    setattr(owner, part, get_peft_model(getattr(owner, part), config))  # starts as the identity
    with prune(model) as session:
        outcome = GREEDY.call(model, GREEDY.build())
        check(outcome, session.report, None, GREEDY)


# -- other wrappers ------------------------------------------------------------------------------


class Holder(nn.Module):
    """A module of one's own that keeps a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, Holder, lambda model: Holder(nn.DataParallel(model))]
)
def test_forward_of_a_wrapper(wrap: Callable[[Any], nn.Module]) -> None:
    model = shared_model(FAMILY)
    before, wrapper = snapshot(model), wrap(model)
    assert unwrap(wrapper) is model
    with prune(wrapper) as session:
        outcome = direct(wrapper, DIRECT.build())
        check(outcome, session.report, None, DIRECT)
    assert snapshot(model) == before


def test_the_base_model() -> None:
    """A session on the model without its head serves the model with it."""
    model, case = shared_model(FAMILY), by_name("turns_image")
    with prune(model.model) as session:
        outcome = case.call(model, case.build())
    want, oracle = run_oracle(case, FAMILY)
    assert_reports(list(session.reports), oracle.turns, kv=True)
    assert_outcomes(outcome, want, oracle)


def test_compiled_model_generates() -> None:
    """generate() of a compiled module is the stock one."""
    model = build_model(FAMILY)
    compiled = torch.compile(model, backend="eager")
    with prune(compiled) as session:
        outcome = GREEDY.call(compiled, GREEDY.build())
        check(outcome, session.report, None, GREEDY)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_forward() -> None:
    """Hooks come and go around code that is compiled already, and it follows them."""
    case = DIRECT
    model = build_model(FAMILY)
    stock = direct(model, case.build())
    for layer, module in enumerate(model.model.language_model.layers):
        if layer in (3, 4):
            model.model.language_model.layers[layer] = torch.compile(module, backend="eager")
    for fields in ({}, {"late_layer": 4, "query": "released"}):
        torch.testing.assert_close(
            direct(model, case.build()).logits, stock.logits, rtol=0, atol=1e-5
        )
        with prune(model, **fields) as session:
            outcome = direct(model, case.build())
        want, oracle = run_oracle(case, FAMILY, **fields)
        assert_reports([session.report], oracle.turns, kv=False)
        assert_outcomes(outcome, want, oracle)


def test_what_holds_no_model() -> None:
    with pytest.raises(TypeError, match="Holder"):
        prune(Holder(nn.Linear(2, 2)))


def test_pruned_as_without_a_wrapper() -> None:
    """The very same numbers."""
    model = shared_model(FAMILY)
    with prune(Holder(model)):
        outcome = Outcome()
        generate_into(outcome, model, **GREEDY.build()[0].inputs)
    want = run_pruned(GREEDY, FAMILY).outcome
    assert all(torch.equal(a, b) for a, b in zip(outcome.logits, want.logits, strict=True))
