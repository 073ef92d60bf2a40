"""What the cells of the test matrix have in common."""

from __future__ import annotations

import functools
from typing import Any

import torch

import erase
from tests.families._base import TinyFamily
from tests.hf.calls import Outcome, text_labels
from tests.hf.cases import BASE_CONFIG, Case
from tests.hf.common import LOGIT_TOLERANCE, is_clear, masked_run, run_pruned, run_stock
from tests.hf.place import BACKEND
from tests.hf.styles import TRAINED, Style
from tests.hf.subjects import layer_kinds
from tests.hf.test_identity import assert_same_bits
from tests.hf.test_oracle_calls import layers_of
from tests.hf.test_oracle_more import GRADIENT_TOLERANCE
from tests.oracle import Oracle

LINEAR = "linear_attention"
OTHER_KEEP_RATIOS = (0.3, 0.35, 0.2)
GRADIENT_FLOOR = 1e-3
"""Of the largest gradient of any tensor; a tensor's own error is not asked to be smaller."""


def settings_of(family: TinyFamily) -> erase.EraseConfig:
    return erase.EraseConfig(**{**BASE_CONFIG, **family.settings})


def clear_fields(case: Case, family: TinyFamily, **fields: Any) -> dict[str, Any]:
    """The fields, and the first share of tokens to keep at which no two scores nearly tie."""
    own = case.settings()["keep_ratio"]
    for ratio in (own, *OTHER_KEEP_RATIOS):
        chosen = {**fields, "keep_ratio": ratio}
        if is_clear(masked_run(case, family, (), **chosen)[1]):
            return chosen
    raise AssertionError("scores nearly tie at every keep ratio")


def assert_exercised(style: Style, case: Case, oracle: Oracle) -> None:
    """Stage 2 runs in every prefill, and where rows are ragged at different layers."""
    layers = layers_of(oracle)
    assert len(layers) == style.turns
    for chosen in layers:
        assert any(layer is not None for layer in chosen), "stage 2 has nothing to do"
    if style.ragged:
        settings = case.settings()
        assert set(layers[0]) == {None, settings["early_layer"], settings["late_layer"]}, (
            "the thresholds do not tell photographs from pages; see TinyFamily.settings"
        )


def assert_nothing_changes(style: Style, case: Case, family: TinyFamily) -> None:
    """With ``keep_ratio`` 1 and forced gathers, the bits are those of the unpatched model."""
    stock = run_stock(case, family, style.attention)
    kept = run_pruned(case, family, style.attention, keep_ratio=1.0, force_gathers=True)
    assert_same_bits(kept.outcome, stock)
    assert len(kept.reports) == style.turns
    for report in kept.reports:
        assert all(
            len(row.kept) == sum(len(image.entropy) for image in row.images) for row in report.rows
        )
        assert {"compact_rows", "text_to_vision_scores"} <= set(report.backends)
        assert set(report.backends.values()) == {BACKEND}
    if style.drafts:
        assert kept.outcome.forwards == stock.forwards
    if stock.recorded is not None:
        for got, want in zip(kept.outcome.recorded, stock.recorded, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def assert_recorded(got: Outcome, want: Outcome, oracle: Oracle) -> None:
    """Recorded outputs have the length that each layer ran on, and the oracle's values there."""
    row = oracle.turns[0].rows[0]
    pruned = (set(row.visual) - set(row.candidates), set(row.visual) - set(row.kept))
    before, after = ([c for c in range(oracle.turns[0].length) if c not in gone] for gone in pruned)
    (states, weights), (all_states, all_weights) = got.recorded, want.recorded
    last = len(states) - 1
    for i, (a, b) in enumerate(zip(states, all_states, strict=True)):
        assert_close(a, b[:, before if i <= row.layer + 1 and i < last else after])
    for layer, a, b in zip(attention_layers(oracle.model), weights, all_weights, strict=True):
        columns = before if layer <= row.layer else after
        assert_close(a, b[:, :, columns][..., columns])


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    """As close as logits must be, relative to the largest value."""
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=LOGIT_TOLERANCE * max(1.0, float(b.abs().max())))


def attention_layers(model: Any) -> list[int]:
    """Decoder layers that return attention weights."""
    return [i for i, kind in enumerate(layer_kinds(model)) if kind != LINEAR]


def train(model: Any, family: TinyFamily) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step."""
    model.requires_grad_(True)
    (prompt,) = TRAINED.build(family)
    labels = text_labels(prompt, model.config.image_token_id)
    loss = model(**prompt.inputs, labels=labels).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads
    return {"loss": loss.detach()[None], **grads}


@functools.cache
def masked_gradients(family: TinyFamily) -> tuple[dict[str, torch.Tensor], Oracle]:
    config = settings_of(family)
    model = family.build("eager")
    with Oracle(model, config, TRAINED.build(family)[0].images) as oracle:
        return train(model, family), oracle


def assert_gradients(
    got: dict[str, torch.Tensor], report: Any, want: dict[str, torch.Tensor], oracle: Oracle
) -> None:
    for row, chosen in zip(report.rows, oracle.turns[0].rows, strict=True):
        assert (row.layer, row.kept.tolist()) == (chosen.layer, chosen.kept)
    assert got.keys() == want.keys()
    # A bias of keys has no gradient but rounding.
    floor = GRADIENT_FLOOR * max(float(gradient.abs().max()) for gradient in want.values())
    for name, gradient in want.items():
        limit = GRADIENT_TOLERANCE * max(float(gradient.abs().max()), floor)
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=limit, msg=name)
