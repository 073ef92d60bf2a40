"""Runs a case three ways (stock, pruned, masked by the oracle) and compares them."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import StaticLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import erase
from erase_kernels.testing import record_ops
from tests.hf.cases import Case, Outcome
from tests.hf.operators import backend_of, erase_ops, expected_ops
from tests.hf.place import ON_GPU
from tests.hf.subjects import Family, model_of, oracle_images, repeated
from tests.models import TEXT_LAYERS
from tests.oracle import Oracle
from tests.oracle_choices import Turn, top_indices
from tests.prompts import chat_processor

LOGIT_TOLERANCE = 1e-5
"""fp32 logits of a pruned and a masked model; the two sum over differently many keys."""
SCORE_TOLERANCE = 2e-5
"""Relative, stage-2 scores in fp32 against float64 sums of the eager attention weights."""
SCORE_FLOOR = 1e-7
"""Absolute, beside it."""
CLEAR_MARGIN = 1e-4
"""Relative distance of the last kept score to the first dropped one that a case must have: more
than any backend's scores may be off, so that stage 2 must choose the very same tokens."""
ERRORS_APART = 3
"""The pruned model may be twice as far from the truth as the oracle, so three errors from it."""
CLEAR_DIFFERENCE = 0.1
"""Largest logit change that pruning must cause in every case (logits have unit deviation)."""


@dataclass
class Pruned:
    """A pruned run and what its session said."""

    outcome: Outcome
    reports: list[Any]
    seen: int
    pruned: int
    ops: set[str]


def snapshot(model: Any) -> dict[str, Any]:
    """All a session may touch: hooks, instance attributes, classes, the attention registry."""
    modules = {}
    for name, module in model.named_modules():
        attributes = {k: id(v) for k, v in vars(module).items() if not k.startswith("_")}
        attributes.pop("rope_deltas", None)  # state of the stock model, changed by every prefill
        hooks = {k: list(v) for k, v in vars(module).items() if k.endswith("_hooks")}
        with_kwargs = {k: list(v) for k, v in vars(module).items() if k.endswith("_with_kwargs")}
        modules[name] = (type(module), attributes, hooks, with_kwargs)
    registry = {k: id(v) for k, v in ALL_ATTENTION_FUNCTIONS._local_mapping.items()}
    shared = {k: id(v) for k, v in ALL_ATTENTION_FUNCTIONS._global_mapping.items()}
    return {"modules": modules, "registry": registry, "shared": shared, "type": type(model)}


@dataclass(frozen=True)
class Limits:
    """How far a pruned model's logits (absolute) and scores (relative) may be from the oracle's."""

    logits: float = LOGIT_TOLERANCE
    scores: float = SCORE_TOLERANCE


FP32 = Limits()


@functools.cache
def limits(case: Case, family: Family, **overrides: Any) -> Limits:
    """Constants on the CPU; on a GPU not below what fp32 costs the oracle itself there."""
    if not ON_GPU:
        return FP32
    single, chosen = run_oracle(case, family, **overrides)
    double, truth = run_oracle(case, family, (torch.float64,), **overrides)
    return errors_apart(single, chosen, double, truth)


def errors_apart(
    rough: Outcome, chosen: Oracle, fine: Outcome, truth: Oracle, rounding: float = 0.0
) -> Limits:
    """Limits from two runs of an oracle that chose the same, the second more precise.

    ``rounding``: of the first run's precision; a few scores may be lucky in that run.
    """
    logits, scores = 0.0, 0.0
    for got, want in zip(chosen.turns, truth.turns, strict=True):
        for a, b in zip(got.rows, want.rows, strict=True):
            assert a.kept == b.kept
            if a.scores is not None and a.scores.size:
                error = np.abs(a.scores - b.scores) - SCORE_FLOOR
                scores = max(scores, float((error / np.maximum(b.scores, SCORE_FLOOR)).max()))
    steps = min(same_inputs(rough, fine), len(rough.logits))
    logits = max(logit_differences(rough, fine, chosen)[:steps])
    return Limits(
        max(LOGIT_TOLERANCE, ERRORS_APART * logits),
        max(SCORE_TOLERANCE, ERRORS_APART * scores + rounding),
    )


def same_inputs(a: Outcome, b: Outcome) -> int:
    """How many steps of two runs saw the same tokens: all up to the first other choice."""
    if not a.tokens:
        return len(a.logits)
    same = (torch.cat(a.tokens, dim=1) == torch.cat(b.tokens, dim=1)).all(0).tolist()
    return 1 + (same.index(False) if False in same else len(same))


@functools.cache
def run_stock(case: Case, family: Family, attention: str = "sdpa") -> Outcome:
    with torch.no_grad():
        return case.call(model_of(family, attention), case.build())


def run_pruned(case: Case, family: Family, attention: str = "sdpa", **overrides: Any) -> Pruned:
    """The case under a session; the model is as before afterwards."""
    model = model_of(family, attention)
    if not isinstance(family, str):
        run_stock(case, family, attention)  # at first use transformers leaves hooks of its own
    before = snapshot(model)
    config = erase.EraseConfig(**case.settings(**overrides))
    processor = chat_processor(case.do_normalize) if isinstance(family, str) else None
    session = erase.prune(model, config, processor=processor)
    watched = contextlib.nullcontext([]) if case.compiled else record_ops()
    with torch.no_grad(), session, watched as ops:
        outcome = case.call(model, case.build())
    assert snapshot(model) == before, "the session left something behind"
    seen, pruned = session.prefills_seen, session.prefills_pruned
    return Pruned(outcome, list(session.reports), seen, pruned, erase_ops(ops))


def run_oracle(
    case: Case, family: Family, dtypes: tuple[torch.dtype, ...] = (), **overrides: Any
) -> tuple[Outcome, Oracle]:
    """The masked run, shared; stage 2 has a clear choice in it."""
    outcome, oracle = masked_run(case, family, dtypes, **overrides)
    assert is_clear(oracle), "choose other pictures"
    return outcome, oracle


def is_clear(oracle: Oracle) -> bool:
    """No score of a kept token is so close to one of a dropped token that rounding may decide."""
    margins = [row.margin for turn in oracle.turns for row in turn.rows]
    return all(margin is None or margin > CLEAR_MARGIN for margin in margins)


@functools.cache
def masked_run(
    case: Case, family: Family, dtypes: tuple[torch.dtype, ...], **overrides: Any
) -> tuple[Outcome, Oracle]:
    model = model_of(family, "eager", *dtypes)
    config = erase.EraseConfig(**case.settings(**overrides))
    prompts = case.build()
    images = oracle_images(prompts)
    if case.times > 1:
        images = repeated(prompts[0], model, case.times)
    with torch.no_grad(), Oracle(model, config, images) as oracle:
        outcome = (case.reference or case.call)(model, prompts)
    assert not oracle.unused_images, "the oracle saw fewer images than the case has"
    return outcome, oracle


def assert_reports(reports: list[Any], turns: list[Turn], kv: bool, limit: Limits = FP32) -> None:
    """Every choice the session reports is the oracle's own."""
    assert len(reports) == len(turns)
    for report, turn in zip(reports, turns, strict=True):
        assert len(report.rows) == len(turn.rows)
        for got, row in zip(report.rows, turn.rows, strict=True):
            _assert_row(got, row, limit)
        _assert_backends(report, turn)
        if kv:
            _assert_kv_lengths(report, turn)


def _assert_row(got: Any, row: Any, limit: Limits) -> None:
    assert len(got.images) == len(row.images)
    for image, want in zip(got.images, row.images, strict=True):
        assert image.entropy.dtype == torch.float32
        np.testing.assert_array_equal(image.entropy.cpu().numpy(), want.entropy)
        assert image.median == want.median
        assert image.level == want.level
        assert image.kept.tolist() == want.kept
        assert (image.stage1_scores is None) == (want.scores is None)
        if want.scores is not None:
            np.testing.assert_array_equal(image.stage1_scores.cpu().numpy(), want.scores)
    assert got.layer == row.layer
    if row.layer is None:
        assert got.candidates is None
        assert got.scores is None
    else:
        assert got.candidates.tolist() == row.candidates
        assert_scores(got, row, limit)
    assert got.kept.tolist() == row.kept


def assert_scores(got: Any, row: Any, limit: Limits) -> None:
    """Scores as far from the oracle's as their precision allows, and the best of them kept.

    So the choice can differ from the oracle's own only by tokens whose scores lie that close to
    the last one kept.
    """
    scores = got.scores.cpu().numpy()
    np.testing.assert_allclose(scores, row.scores, rtol=limit.scores, atol=SCORE_FLOOR)
    best = top_indices(scores, row.budget)
    assert got.kept.tolist() == [row.candidates[i] for i in best]


def _assert_backends(report: Any, turn: Turn) -> None:
    assert set(report.backends) == expected_ops([turn], kv=bool(report.kv_lengths))
    assert all(name == backend_of(op) for op, name in report.backends.items())


def _assert_kv_lengths(report: Any, turn: Turn) -> None:
    """Valid cache rows per layer right after this prefill: every row at its own length.

    A recurrent layer has none.
    """
    lengths = report.kv_lengths if len(turn.rows) > 1 else [report.kv_lengths]
    slots = [length > 0 for length in lengths[0]]
    assert len(slots) == TEXT_LAYERS
    assert lengths == [[valid * held for held in slots] for valid in turn.valid_after]


def logit_differences(got: Outcome, want: Outcome, oracle: Oracle) -> list[float]:
    """Largest difference of each step wherever a token was kept."""
    assert len(got.logits) == len(want.logits)
    largest = []
    for a, b, positions in zip(got.logits, want.logits, got.positions, strict=True):
        assert a.shape == b.shape
        difference = (a.double() - b.double()).abs().amax(-1)
        if positions is not None:
            kept = oracle.kept_columns[:, positions]
            assert bool(kept.any())
            difference = difference[kept]
        largest.append(float(difference.max()))
    return largest


def assert_outcomes(got: Outcome, want: Outcome, oracle: Oracle, limit: Limits = FP32) -> None:
    """Same tokens, and logits within tolerance wherever a token was kept."""
    for a, b in zip(got.tokens, want.tokens, strict=True):
        assert torch.equal(a, b)
    assert max(logit_differences(got, want, oracle)) <= limit.logits
    if want.loss is not None:
        torch.testing.assert_close(got.loss, want.loss, rtol=0, atol=limit.logits)


def assert_cache(got: Outcome, oracle: Oracle) -> None:
    """Length of every layer = text + kept + generated - 1, of the longest row."""
    if got.cache is None:
        return
    longest = int(oracle.kept_columns.sum(1).max())
    prefills = len(oracle.turns) + oracle.other_prefills
    if prefills == 1:
        assert longest == max(oracle.turns[0].valid_after) + got.generated
    first_turn_padding = oracle.batch > 1 and prefills > 1
    layers = [layer for layer in got.cache.layers if hasattr(layer, "keys")]
    assert layers
    for layer in layers:
        assert layer.keys.shape == layer.values.shape
        if isinstance(layer, StaticLayer):
            assert int(layer.cumulative_length) == longest
        elif not first_turn_padding:  # slots of shorter rows stay empty between the turns
            assert layer.keys.shape[-2] == longest
        else:
            assert longest <= layer.keys.shape[-2] < oracle.kept_columns.shape[1]


def differs_clearly(got: Outcome, stock: Outcome, oracle: Oracle) -> bool:
    """Whether pruning changed a logit of a kept position by more than ``CLEAR_DIFFERENCE``."""
    return max(logit_differences(got, stock, oracle)) > CLEAR_DIFFERENCE
