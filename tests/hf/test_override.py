"""``session.override``: other settings for one request, and back."""

from __future__ import annotations

import pytest
import torch

import erase
from tests.hf.calls import Outcome
from tests.hf.cases import BASE_CONFIG, Case, by_name
from tests.hf.common import run_oracle, run_pruned
from tests.models import shared_model
from tests.prompts import chat_processor

CASE = by_name("greedy_photo")


@pytest.fixture
def session() -> erase.Session:
    model = shared_model("qwen2_5_vl")
    config = erase.EraseConfig(**BASE_CONFIG)
    with torch.no_grad(), erase.prune(model, config, processor=chat_processor()) as opened:
        yield opened


def run(case: Case = CASE) -> Outcome:
    return case.call(shared_model("qwen2_5_vl"), case.build())


def kept(session: erase.Session) -> int:
    return len(session.report.rows[0].kept)


def test_one_request(session: erase.Session) -> None:
    visual = 30
    run()
    assert kept(session) == int(visual * 0.25)
    with session.override(keep_ratio=0.5, query="released") as same:
        assert same is session
        overridden = run()
        assert kept(session) == int(visual * 0.5)
    wanted, oracle = run_oracle(CASE, "qwen2_5_vl", keep_ratio=0.5, query="released")
    assert session.report.rows[0].kept.tolist() == oracle.turns[0].rows[0].kept
    assert torch.equal(overridden.tokens[0], wanted.tokens[0])
    back = run()
    assert kept(session) == int(visual * 0.25)
    assert session.method == erase.EraseConfig(**BASE_CONFIG)
    plain = run_pruned_after(session)
    for a, b in zip(back.logits, plain.logits, strict=True):
        assert torch.equal(a, b)


def run_pruned_after(session: erase.Session) -> Outcome:
    """The same request in a session of its own."""
    session.remove()
    return run_pruned(CASE, "qwen2_5_vl").outcome


def test_nested(session: erase.Session) -> None:
    with session.override(keep_ratio=0.5):
        with session.override(late_layer=4):
            assert session.method.keep_ratio == 0.5
            run()
            assert session.report.rows[0].layer == 4
            assert kept(session) == 15
        run()
        assert session.report.rows[0].layer == BASE_CONFIG["late_layer"]
    assert session.method == erase.EraseConfig(**BASE_CONFIG)


def test_restored_after_an_exception(session: erase.Session) -> None:
    with pytest.raises(ZeroDivisionError), session.override(keep_ratio=0.5):
        raise ZeroDivisionError
    assert session.method == erase.EraseConfig(**BASE_CONFIG)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"keep_ratio": 0.0}, ValueError),
        ({"late_layer": 6}, ValueError),
        ({"kept": 3}, TypeError),
    ],
)
def test_bad_fields(session: erase.Session, fields: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(fields))), session.override(**fields):
        pass
    assert session.method == erase.EraseConfig(**BASE_CONFIG)


def test_second_turn_uses_the_override(session: erase.Session) -> None:
    """A later turn may prune more or less than the first one did."""
    case = by_name("turns_image")
    model, prompts = shared_model("qwen2_5_vl"), case.build()
    ratios = iter((0.5, 0.1, 0.25))
    generate = model.generate

    def generate_with_next_ratio(**kwargs: object) -> object:
        with session.override(keep_ratio=next(ratios)):
            return generate(**kwargs)

    model.generate = generate_with_next_ratio
    try:
        case.call(model, prompts)
    finally:
        model.generate = generate
    assert [len(report.rows[0].kept) for report in session.reports] == [15, int(42 * 0.1)]
