"""Every family in every call style, against the oracle, and unchanged where everything is kept.

What passes is recorded for docs/support.md (``tests/support_page.py``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import erase
from tests.families import ALL
from tests.families._base import TinyFamily
from tests.hf.cases import Case
from tests.hf.common import run_oracle, run_pruned, run_stock, snapshot
from tests.hf.facts import Facts
from tests.hf.matrix import (
    LINEAR,
    assert_close,
    assert_exercised,
    assert_gradients,
    assert_nothing_changes,
    assert_recorded,
    clear_fields,
    masked_gradients,
    settings_of,
    train,
)
from tests.hf.more_calls import assisted, parroted, without_mask
from tests.hf.refused import REFUSALS, Refusal
from tests.hf.styles import IN_OLDER, STYLES, TEXT_ONLY, Style, case_of
from tests.hf.subjects import layer_kinds, repeats_tiles, stack_of
from tests.hf.test_identity import assert_same_bits
from tests.hf.test_oracle_calls import assert_pruned
from tests.hf.test_oracle_more import HOOKS_OUTSIDE_CHECKPOINT

Record = Callable[[str, Any], None]
families = pytest.mark.parametrize("family", ALL, ids=repr)


@families
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name.replace(" ", "_"))
def test_style(style: Style, family: TinyFamily, record_property: Record) -> None:
    case = case_of(style, family)
    if style.drafts and family.model()._is_stateful:
        assert_stock_refuses(case, family)
        record_property(*cell(family, style.name, "not in transformers"))
        return
    if style.name in family.broken:
        with pytest.raises(RuntimeError):
            run_stock(case, family, style.attention)
        record_property(*cell(family, style.name, "not in transformers"))
        return
    if style.times > 1 and repeats_tiles(case.build()[0], family.model()):
        assert_nothing_changes(style, case, family)
        record_property(*cell(family, style.name, IN_OLDER))
        return
    clear = clear_fields(case, family)
    want, oracle = run_oracle(case, family, **clear)
    assert_exercised(style, case, oracle)
    got = assert_pruned(case, family, style.attention, drafts=style.drafts, **clear)
    if got.outcome.recorded is not None:
        assert_recorded(got.outcome, want, oracle)
    assert_nothing_changes(style, case, family)
    record_property(*cell(family, style.name, "ok"))


def assert_stock_refuses(case: Case, family: TinyFamily) -> None:
    """Transformers drafts for no model with recurrent states, pruned or not."""
    with pytest.raises(ValueError, match="stateful"):
        run_stock(case, family)
    with erase.prune(family.model(), erase.EraseConfig(**case.settings())) as session:
        with pytest.raises(ValueError, match="stateful"):
            case.call(family.model(), case.build())
        assert session.prefills_seen == 0


def cell(family: TinyFamily, column: str, content: str) -> tuple[str, tuple[str, ...]]:
    """A property of the test's report that docs/support.md is made of."""
    return "support", ("style", family.name, column, content)


def photo_case(family: TinyFamily) -> Case:
    """model(...) on one image, without a cache."""
    return case_of(next(style for style in STYLES if style.call is without_mask), family)


@families
def test_accepted_drafts(family: TinyFamily) -> None:
    """Drafts that come with the prompt and are right: they see what decoding sees, not more."""
    style = next(style for style in STYLES if style.call is assisted)
    case, model = case_of(style, family), family.model()
    if model._is_stateful:
        assert_stock_refuses(case, family)
        return
    clear = clear_fields(case, family)
    want, _ = run_oracle(case, family, **clear)
    told = dataclasses.replace(case, call=functools.partial(parroted, want.tokens[0]))
    got = run_pruned(told, family, **clear).outcome
    assert got.forwards == 2, "a draft was not accepted"
    assert torch.equal(got.tokens[0], want.tokens[0])
    for a, b in zip(got.logits, want.logits, strict=True):
        assert_close(a, b)


@families
def test_any_layer(family: TinyFamily, record_property: Record) -> None:
    """Stage 2 after each layer that has attention; a linear one is refused when installing."""
    case, model, refused = photo_case(family), family.model(), ""
    for layer, kind in enumerate(layer_kinds(model)):
        fields = {"early_layer": layer, "late_layer": layer}
        if kind != LINEAR:
            clear = clear_fields(case, family, **fields)
            got = assert_pruned(case, family, "sdpa", **clear)
            assert got.reports[0].rows[0].layer == layer
            continue
        before = snapshot(model)
        with pytest.raises(ValueError, match="linear"):
            erase.prune(model, erase.EraseConfig(**case.settings(**fields)))
        assert snapshot(model) == before
        refused = "; refused: linear-attention layers"
    record_property(*cell(family, "any layer", f"ok{refused}"))


@families
def test_one_stage(family: TinyFamily, record_property: Record) -> None:
    """Either stage without the other."""
    case = photo_case(family)
    for fields, layers in (({"stage2": False}, {None}), ({"stage1": False}, set())):
        got = assert_pruned(case, family, "sdpa", **clear_fields(case, family, **fields))
        row = got.reports[0].rows[0]
        assert {row.layer} == layers or len(row.candidates) == row.visual_tokens
    record_property(*cell(family, "one stage", "ok"))


@families
def test_text_only(family: TinyFamily, record_property: Record) -> None:
    """Prompts without images have the bits of the unpatched model, and no reports."""
    case = case_of(TEXT_ONLY, family)
    got = run_pruned(case, family)
    assert_same_bits(got.outcome, run_stock(case, family))
    assert (got.reports, got.seen, got.ops) == ([], 0, set())
    record_property(*cell(family, "text only", "ok"))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@families
def test_training(family: TinyFamily, checkpointing: bool, record_property: Record) -> None:
    """Loss and gradients of a pruned forward are those of the masked one."""
    pruned = family.build()
    config = settings_of(family)
    if checkpointing:
        pruned.gradient_checkpointing_enable()
        pruned.train()
    name, result = "checkpointing" if checkpointing else "training", "ok"
    with erase.prune(pruned, config) as session:
        if checkpointing and not HOOKS_OUTSIDE_CHECKPOINT:
            with pytest.raises(ValueError, match="checkpointing"):
                train(pruned, family)
            result = IN_OLDER
        else:
            got = train(pruned, family)
            assert_gradients(got, session.report, *masked_gradients(family))
    record_property(*cell(family, name, result))


@families
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "_"))
def test_refused(refusal: Refusal, family: TinyFamily, record_property: Record) -> None:
    """The reason comes before the language model runs, and nothing has been changed."""
    model, ran = family.model(), []
    run_stock(photo_case(family), family)  # at first use transformers leaves hooks of its own
    before = snapshot(model)
    handle = stack_of(model).layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    config = settings_of(family)
    try:
        with torch.no_grad(), pytest.raises(ValueError, match=refusal.says) as error:
            refusal.call(family, model, config)
    finally:
        handle.remove()
    assert ran == []
    assert snapshot(model) == before
    record_property("support", ("refused", family.name, refusal.name, str(error.value)))


@families
def test_facts(family: TinyFamily, record_property: Record) -> None:
    """What ``supported_models`` says of the family is so; what else the page says is measured."""
    model, config = family.model(), settings_of(family)
    kind = model.config.model_type
    (known,) = [m for m in erase.supported_models() if m.model_type == kind]
    hybrid = LINEAR in layer_kinds(model)
    assert known.stage2 == ("full-attention layers" if hybrid else "every layer")
    assert known.released == family.released == accepts(model, config.replace(query="released"))
    assert known.videos == accepts(model, config, videos=True)
    (prompt,) = case_of(STYLES[0], family).build()
    with torch.no_grad(), erase.prune(model, config) as session, Facts(model) as facts:
        model(**prompt.inputs)
    assert facts.axes == (3 if family.mrope else 1)
    remarks = [
        "tiles ranked as one image" * known.joins_tiles,
        "some kept always" * any(not all(picture.candidates) for picture in prompt.images),
        "DeepStack" * hasattr(stack_of(model), "_deepstack_process"),
    ]
    assert session.prefills_pruned == 1
    found = {
        "type": kind,
        "class": type(model).__name__,
        "cell": str(facts.cell),
        "positions": str(facts.axes),
        "remarks": ", ".join(filter(None, remarks)) or "all candidates",
    }
    for name, content in found.items():
        record_property("support", ("fact", family.name, name, content))


def accepts(model: Any, config: erase.EraseConfig, **options: Any) -> bool:
    """Whether a session opens."""
    try:
        erase.prune(model, config, **options).remove()
    except ValueError:
        return False
    return True


def test_every_model_type_is_tested() -> None:
    tested = {family.model().config.model_type for family in ALL}
    assert tested == set(erase.supported_model_types())
