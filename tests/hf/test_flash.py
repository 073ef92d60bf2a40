"""The flash attention path, dense and for ragged batches, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

import erase
from tests.hf.calls import NEW_TOKENS, Outcome, generate_into
from tests.hf.cases import Case, by_name
from tests.hf.common import (
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
    limits,
    run_oracle,
    run_stock,
)
from tests.hf.flash import FlashCall, attend, flash_kernels, with_flash
from tests.hf.place import DEVICE
from tests.hf.static import STATIC
from tests.models import FAMILIES, TEXT_LAYERS, shared_model
from tests.oracle import Oracle
from tests.prompts import chat_processor

DENSE = ("greedy_photo", "greedy_page", "two_images", "direct_loop_no_mask")
RAGGED = ("ragged_batch", "padded_row", "direct_loop_batch")
TURNS = ("turns_image", "turns_image_new_ids", "turns_text", "turns_ragged_image")


def run_flash(case: Case, family: str) -> tuple[Outcome, Oracle, list[FlashCall], Any]:
    """The case on the flash path, compared with the oracle."""
    want, oracle = run_oracle(case, family)
    config = erase.EraseConfig(**case.settings())
    with (
        flash_kernels() as calls,
        with_flash(shared_model(family)) as model,
        torch.no_grad(),
        erase.prune(model, config, chat_processor()) as session,
    ):
        got = case.call(model, case.build())
    limit = limits(case, family)
    assert_outcomes(got, want, oracle, limit)
    assert_cache(got, oracle)
    assert_reports(list(session.reports), oracle.turns, kv=got.cache is not None, limit=limit)
    assert differs_clearly(got, run_stock(case, family), oracle)
    return got, oracle, calls, session.reports


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, family: str) -> None:
    """Batch 1: the dense kernel in every layer and step, however gapped the positions are."""
    got, _, calls, reports = run_flash(by_name(name), family)
    assert {call.kernel for call in calls} == {"dense"}
    assert len(calls) == TEXT_LAYERS * NEW_TOKENS if got.tokens else calls
    report = reports[0]
    prefill = [call.queries[0] for call in calls[:TEXT_LAYERS]]
    row, after = report.rows[0], report.kv_lengths[0]
    before = after + len(row.candidates) - len(row.kept)
    assert prefill == [before] * (row.layer + 1) + [after] * (TEXT_LAYERS - row.layer - 1)
    assert [call.keys for call in calls[:TEXT_LAYERS]] == [(n,) for n in prefill]
    assert [call.keys for call in calls[TEXT_LAYERS:]] == [
        (after + step,) for step in range(1, NEW_TOKENS) for _ in range(TEXT_LAYERS)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RAGGED)
def test_ragged(name: str, family: str) -> None:
    """Padding and empty slots are left out: every row has its own number of keys."""
    _, _, calls, reports = run_flash(by_name(name), family)
    report = reports[0]
    lengths = report.kv_lengths if len(report.rows) > 1 else [report.kv_lengths]
    rows = tuple(row[0] for row in lengths)
    if len(set(rows)) > 1:
        assert {call.kernel for call in calls} == {"varlen"}
        assert calls[TEXT_LAYERS - 1] == FlashCall("varlen", rows, rows)
    for step, call in enumerate(calls[TEXT_LAYERS::TEXT_LAYERS], start=1):
        assert call.queries == (1,) * len(rows)
        assert call.keys == tuple(n + step for n in rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TURNS)
def test_turns(name: str, family: str) -> None:
    """Later turns on a pruned cache, with and without a new image."""
    case = by_name(name)
    _, oracle, calls, _ = run_flash(case, family)
    if oracle.batch == 1:
        assert {call.kernel for call in calls} == {"dense"}
        longer = [call for call in calls if 1 < call.queries[0] < call.keys[0]]
        assert len(longer) >= TEXT_LAYERS, "no turn had keys before its own"
    else:
        assert "varlen" in {call.kernel for call in calls}


@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_static_cache(name: str) -> None:
    """Only filled slots of a static cache are keys."""
    case, family = by_name(name), "qwen2_5_vl"
    want, oracle = run_oracle(case, family)
    config = erase.EraseConfig(**case.settings())
    got = Outcome()
    with (
        flash_kernels() as calls,
        with_flash(shared_model(family)) as model,
        torch.no_grad(),
        erase.prune(model, config, chat_processor()) as session,
    ):
        generate_into(got, model, **STATIC, **case.build()[0].inputs)
    assert isinstance(got.cache, StaticCache)
    assert_outcomes(got, want, oracle, limits(case, family))
    report = session.report
    lengths = report.kv_lengths if len(report.rows) > 1 else [report.kv_lengths]
    for step, call in enumerate(calls[TEXT_LAYERS::TEXT_LAYERS], start=1):
        assert call.keys == tuple(row[0] + step for row in lengths)


def test_full_masks() -> None:
    """A mask that hides nothing keeps the dense kernel, before and after pruning."""
    case = by_name("turns_image")
    first, second = (prompt.inputs for prompt in case.build()[:2])
    config = erase.EraseConfig(**case.settings())
    with (
        flash_kernels() as calls,
        with_flash(shared_model("qwen2_5_vl")) as model,
        torch.no_grad(),
        erase.prune(model, config, chat_processor()) as session,
    ):
        cache = model(**first).past_key_values
        masks = [first["attention_mask"], second["attention_mask"], first["attention_mask"][:, :1]]
        steps = torch.arange(second["input_ids"].shape[1], device=DEVICE)
        for fed, inputs in ((2, second), (3, {"input_ids": second["input_ids"][:, :1]})):
            mask = torch.cat(masks[:fed], dim=1)
            length = inputs["input_ids"].shape[1]
            where = (cache.get_seq_length() + steps[:length]).expand(3, 1, -1)
            call = {**inputs, "attention_mask": mask, "position_ids": where}
            model(**call, past_key_values=cache)
    assert session.prefills_pruned == 2
    assert len(calls) == 3 * TEXT_LAYERS
    assert {call.kernel for call in calls} == {"dense"}


def test_stand_in_is_attention() -> None:
    """The stand-in computes what torch does, also with more keys than queries."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(n, h, 8) for n, h in ((3, 4), (5, 2), (5, 2)))
    seen = torch.ones(3, 5, dtype=torch.bool).tril(2)
    heads = [t.transpose(0, 1)[None] for t in (query, key, value)]
    want = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=seen, scale=0.3, enable_gqa=True
    )
    got = attend(query, key, value, 0.3, causal=True)
    torch.testing.assert_close(got, want[0].transpose(0, 1))
