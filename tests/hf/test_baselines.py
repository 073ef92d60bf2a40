"""FastV and random tokens in whole models: what is kept and computed is what the oracles say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import erase
from erase.methods import Method
from erase_kernels.testing import record_ops
from tests.families._base import IDS
from tests.families.llava import FAMILIES as LLAVA
from tests.families.llava import TinyLlava
from tests.families.qwen3_5 import FAMILIES as QWEN3_5
from tests.families.qwen3_vl import FAMILIES as QWEN3_VL
from tests.hf import families
from tests.hf.calls import Outcome, direct, generate_into, greedy
from tests.hf.cases import DESCRIBE, by_name
from tests.hf.common import (
    Limits,
    assert_cache,
    assert_outcomes,
    assert_reports,
    differs_clearly,
    errors_apart,
    is_clear,
)
from tests.hf.operators import erase_ops, expected_ops, ran_ops
from tests.hf.place import ON_GPU
from tests.hf.subjects import Family, model_of, oracle_images
from tests.hf.test_identity import assert_same_bits
from tests.hf.watch import Watch
from tests.models import TEXT_LAYERS
from tests.oracle import Oracle
from tests.oracle_baselines import FastVOracle, RandomOracle
from tests.oracle_choices import Picture
from tests.prompts import Prompt, chat_processor, encode, photo

RATIO, LAYER, SEED = 0.25, 1, 5
FASTV, RANDOM = erase.FastV(RATIO, layer=LAYER), erase.Random(RATIO, seed=SEED)


@dataclass(frozen=True, eq=False)
class Subject:
    """A family, and one way to call it."""

    name: str
    family: Family
    call: Callable[[Any, list[Prompt]], Outcome]
    build: Callable[[], list[Prompt]]

    def __repr__(self) -> str:
        return self.name.replace(" ", "_")

    @property
    def processor(self) -> Any:
        return chat_processor() if isinstance(self.family, str) else None

    def run(self, attention: str = "sdpa", *dtypes: torch.dtype) -> Outcome:
        """The stock model, or whatever watches it."""
        with torch.no_grad():
            return self.call(model_of(self.family, attention, *dtypes), self.build())


def _case(name: str) -> Subject:
    case = by_name(name)
    return Subject(f"qwen2_5_vl {name}", "qwen2_5_vl", case.call, case.build)


def _tiny(family: Any) -> list[Subject]:
    calls = {
        "direct one": (direct, families.one),
        "greedy ragged": (greedy, families.ragged),
        "turns": (families.turns(family, whole_ids=True), families.conversation),
    }
    return [
        Subject(f"{family} {name}", family, call, lambda build=build: build(family))
        for name, (call, build) in calls.items()
    ]


CASES = (
    "greedy_photo",
    "two_images",
    "ragged_batch",
    "direct_right_padded",
    "padded_row",
    "masked_image",
    "turns_image",
    "labels",
    "videos_and_image",
)
SUBJECTS = [*map(_case, CASES), *_tiny(LLAVA[0]), *_tiny(QWEN3_VL[0])]


def fastv_oracle(model: Any, images: list[Any]) -> Oracle:
    return FastVOracle(model, images, RATIO, LAYER)


def random_oracle(model: Any, images: list[Any]) -> Oracle:
    return RandomOracle(model, images, RATIO, SEED)


def masked(subject: Subject, make: Any, *dtypes: torch.dtype) -> tuple[Outcome, Oracle]:
    model = model_of(subject.family, "eager", *dtypes)
    with make(model, oracle_images(subject.build())) as oracle:
        outcome = subject.run("eager", *dtypes)
    assert not oracle.unused_images
    assert is_clear(oracle), "choose other pictures"
    return outcome, oracle


def pruned(
    subject: Subject, method: Method, attention: str = "sdpa"
) -> tuple[Outcome, list[Any], set[str]]:
    """Outcome, reports, and the operators that ran."""
    model = model_of(subject.family, attention)
    with erase.prune(model, method, subject.processor) as session, record_ops() as ops:
        outcome = subject.run(attention)
    assert session.prefills_seen == session.prefills_pruned
    return outcome, list(session.reports), erase_ops(ops)


def check(subject: Subject, method: Method, make: Any, attention: str) -> list[Any]:
    want, oracle = masked(subject, make)
    got, reports, ops = pruned(subject, method, attention)
    limit = Limits()
    if ON_GPU:
        limit = errors_apart(want, oracle, *masked(subject, make, torch.float64))
    assert_reports(reports, oracle.turns, kv=got.cache is not None, limit=limit)
    assert_outcomes(got, want, oracle, limit)
    assert_cache(got, oracle)
    assert ops == ran_ops(expected_ops(oracle.turns, kv=got.cache is not None))
    assert differs_clearly(got, subject.run(attention), oracle)
    return reports


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=repr)
def test_fastv(subject: Subject, attention: str) -> None:
    """The best of each row by the last text token's attention, and the masked model's logits."""
    reports = check(subject, FASTV, fastv_oracle, attention)
    for row in (row for report in reports for row in report.rows if row.images):
        assert row.layer == LAYER
        assert len(row.candidates) == row.visual_tokens
        assert len(row.kept) == int(row.visual_tokens * RATIO)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=repr)
def test_random(subject: Subject, attention: str) -> None:
    """The drawn cells of each image, and the masked model's logits."""
    reports = check(subject, RANDOM, random_oracle, attention)
    for row in (row for report in reports for row in report.rows):
        assert row.layer is None
        for image in row.images:
            assert len(image.kept) == int(len(image.entropy) * RATIO)


def test_the_last_layer() -> None:
    subject, layer = _case("ragged_batch"), TEXT_LAYERS - 1
    check(
        subject,
        FASTV.replace(layer=layer),
        lambda model, images: FastVOracle(model, images, RATIO, layer),
        "sdpa",
    )


class _BareLlava(TinyLlava):
    def slot(self, picture: Picture) -> list[int]:
        """Image tokens with no text token around them."""
        return [IDS["image_token_id"]] * len(picture.candidates)


def test_rows_whose_images_no_text_sees() -> None:
    """Text before the image, or none: every score is 0, and the first tokens stay."""
    family = _BareLlava("llava")
    rows = [["What is this? ", photo(5, 6)], [photo(5, 6, 20, 10)], [photo(3, 4), DESCRIBE]]

    def build() -> list[Prompt]:
        return [family.encode(rows, head="", tail="")]

    (report,) = check(Subject("unseen", family, direct, build), FASTV, fastv_oracle, "sdpa")
    for row in report.rows[:2]:
        assert not row.scores.any()
        assert row.kept.tolist() == row.candidates[: len(row.kept)].tolist()
    assert bool(report.rows[2].scores.all())


def test_a_layer_without_attention_is_refused() -> None:
    model = QWEN3_5[0].model()
    with pytest.raises(ValueError, match="layer: layer 2 is a linear-attention layer"):
        erase.prune(model, FASTV.replace(layer=2))
    subject = Subject("hybrid", QWEN3_5[0], greedy, lambda: families.ragged(QWEN3_5[0]))
    check(subject, FASTV, fastv_oracle, "sdpa")


def test_seeds() -> None:
    """The same again, and other cells with another seed, of equally many."""
    subject = _case("ragged_batch")
    model = model_of(subject.family)
    with erase.prune(model, RANDOM, subject.processor) as session:
        first = subject.run()
        again = subject.run()
        with session.override(seed=SEED + 1):
            other = subject.run()
    kept = [[row.kept.tolist() for row in report.rows] for report in session.reports]
    assert kept[0] == kept[1] != kept[2]
    assert [*map(len, kept[0])] == [*map(len, kept[2])]
    assert_same_bits(again, first)
    assert not torch.equal(other.logits[0], first.logits[0])


def test_drafted_tokens_do_not_score() -> None:
    """Prompt lookup feeds drafts behind the prompt; the last text token is still the prompt's."""
    prompt = encode([[photo(5, 6), "one two three one two three one two three one two"]])
    model, alone, drafted = model_of("qwen2_5_vl"), Outcome(), Outcome()
    with torch.no_grad(), erase.prune(model, FASTV, chat_processor()) as session:
        generate_into(alone, model, **prompt.inputs)
        generate_into(drafted, model, prompt_lookup_num_tokens=3, **prompt.inputs)
    first, second = session.reports
    assert first.rows[0].kept.tolist() == second.rows[0].kept.tolist()
    assert torch.equal(drafted.tokens[0], alone.tokens[0])


@pytest.mark.parametrize("force_gathers", [False, True])
@pytest.mark.parametrize("method", [FASTV, RANDOM], ids=["fastv", "random"])
@pytest.mark.parametrize("subject", [SUBJECTS[2], SUBJECTS[-1]], ids=repr)
def test_keep_everything(subject: Subject, method: Method, force_gathers: bool) -> None:
    whole = method.replace(keep_ratio=1.0, force_gathers=force_gathers)
    got, reports, ops = pruned(subject, whole)
    assert_same_bits(got, subject.run())
    assert ("compact_rows" in reports[0].backends) is force_gathers
    assert ran_ops({"complexity_plan"}) <= ops
    for row in reports[0].rows:
        assert row.kept_ratio == row.prefill_ratio == (1.0 if row.images else None)


@pytest.mark.parametrize("method", [FASTV, RANDOM], ids=["fastv", "random"])
def test_one_read_per_prefill(method: Method) -> None:
    case = by_name("ragged_batch")
    model, inputs = model_of("qwen2_5_vl"), case.build()[0].inputs
    with torch.no_grad(), Watch() as stock:
        model(**inputs)
    with torch.no_grad(), erase.prune(model, method, chat_processor()), Watch() as watch:
        model(**inputs)
    extra = watch.reads - stock.reads
    assert extra.total() <= 1, extra
    assert watch.from_host == {}, "on an accelerator each of these waits for it"
