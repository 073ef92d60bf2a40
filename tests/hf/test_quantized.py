"""Quantised linear layers in the decoder: torchao's and bitsandbytes' own, on the CPU.

Where only weights are quantised, the oracle is a stock model of the dequantised ones. 8-bit layers
of bitsandbytes quantise activations too; there the oracle masks a model of the same layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import erase
from tests.hf.calls import Outcome
from tests.hf.cases import Case, by_name
from tests.hf.common import (
    LOGIT_TOLERANCE,
    assert_cache,
    assert_outcomes,
    assert_reports,
    logit_differences,
    oracle_images,
    snapshot,
)
from tests.hf.place import ON_GPU
from tests.models import build_model
from tests.oracle import Oracle
from tests.prompts import chat_processor

FAMILY = "qwen2_5_vl"
CASE = by_name("ragged_batch")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def replace_linear(stack: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for parent in list(stack.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))


def eight_bit(linear: nn.Linear) -> nn.Module:
    # Without outliers, whose columns depend on the other tokens of a batch.
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    layer = Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def four_bit(linear: nn.Linear) -> nn.Module:
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    layer = Linear4bit(*sizes, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def plain(linear: nn.Linear) -> nn.Module:
    """A linear layer of the dequantised weights."""
    weight: Any = linear.weight
    if isinstance(linear, Linear4bit):
        values = dequantize_4bit(weight.data, weight.quant_state)
    else:
        values = weight.dequantize()
    layer = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    layer.weight = nn.Parameter(values, requires_grad=False)
    layer.bias = linear.bias
    return layer


QUANTISE: dict[str, Callable[[nn.Module], None]] = {
    "torchao_int8": lambda stack: quantize_(stack, Int8WeightOnlyConfig()),
    "bitsandbytes_8bit": lambda stack: replace_linear(stack, eight_bit),
    "bitsandbytes_4bit": lambda stack: replace_linear(stack, four_bit),
}


def quantised(kind: str, attention: str = "sdpa") -> Any:
    model = build_model(FAMILY, attention)
    QUANTISE[kind](model.model.language_model)
    return model


@functools.cache
def run_oracle(kind: str, query: str) -> tuple[Outcome, Oracle]:
    model = quantised(kind, "eager")
    if kind != "bitsandbytes_8bit":
        replace_linear(model.model.language_model, plain)
    return masked(model, CASE, query)


def masked(model: Any, case: Case, query: str) -> tuple[Outcome, Oracle]:
    config, prompts = erase.EraseConfig(**case.settings(query=query)), case.build()
    with Oracle(model, config, oracle_images(prompts)) as oracle:
        outcome = case.call(model, prompts)
    return outcome, oracle


def numbers(model: nn.Module) -> list[Tensor]:
    """Everything that weights consist of."""
    parts: list[Tensor] = []
    for tensor in model.state_dict().values():
        inner = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
        parts += [getattr(tensor, name) for name in inner] or [tensor]
    return [part.clone() for part in parts if isinstance(part, Tensor)]


if not ON_GPU:

    @pytest.mark.parametrize(
        ("kind", "query"),
        [(kind, "exact") for kind in QUANTISE]
        + [("torchao_int8", "released"), ("bitsandbytes_4bit", "released")],
    )
    def test_quantised_layers(kind: str, query: str) -> None:
        model = quantised(kind)
        before, weights = snapshot(model), numbers(model)
        config = erase.EraseConfig(**CASE.settings(query=query))
        with erase.prune(model, config, chat_processor()) as session:
            outcome = CASE.call(model, CASE.build())
        want, oracle = run_oracle(kind, query)
        assert_reports(list(session.reports), oracle.turns, kv=True)
        assert_outcomes(outcome, want, oracle)
        assert_cache(outcome, oracle)
        assert snapshot(model) == before
        after = numbers(model)
        assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))

    @pytest.mark.parametrize("kind", QUANTISE)
    def test_quantisation_matters(kind: str) -> None:
        """The layers are quantised: the whole model answers otherwise."""
        want, oracle = run_oracle(kind, "exact")
        whole, _ = masked(build_model(FAMILY, "eager"), CASE, "exact")
        assert max(logit_differences(whole, want, oracle)) > 1000 * LOGIT_TOLERANCE

    def test_released_query_of_8_bit_layers() -> None:
        """Made by calling the layer; its codes are no weights."""
        model = quantised("bitsandbytes_8bit")
        config = erase.EraseConfig(**CASE.settings(query="released"))
        with erase.prune(model, config, chat_processor()) as session:
            CASE.call(model, CASE.build())
        whole = build_model(FAMILY)
        with erase.prune(whole, config, chat_processor()) as other:
            CASE.call(whole, CASE.build())
        for row, near in zip(session.report.rows, other.report.rows, strict=True):
            assert row.layer == near.layer
            if row.layer is not None:
                torch.testing.assert_close(row.scores, near.scores, rtol=0.2, atol=0.05)
