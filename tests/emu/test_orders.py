"""No operator's result depends on the order in which its threads and blocks run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import erase_kernels as ek
from erase_kernels import _backends, check_status
from erase_kernels.testing import record_ops
from erase_kernels.testing_selection import assert_scores_match
from tests import emu
from tests.device.subjects import SUBJECTS, VARIANTS, Subject
from tests.selection import same_bits

CPU = torch.device("cpu")
ORDERS = (("forward", 0), ("reverse", 0), *(("shuffled", seed) for seed in range(1, 7)))
ONE_LAUNCH = {"compact_kv", "complexity_plan", "segmented_topk", "compact_rows"}
SCORES = "text_to_vision_scores"

each_subject = pytest.mark.parametrize("name", SUBJECTS)


def outcome(subject: Subject, variant: int, backend: str) -> list[Tensor]:
    """Of a call on fresh operands; proves which private operator ran, and that data was good."""
    subject.fill(variant)
    with record_ops() as names:
        result = subject.call(backend)
    assert names == [f"erase_kernels::{subject.ran}_{backend}"]
    check_status(CPU)
    return subject.outcome(result)


def scores_in_budget(subject: Subject) -> None:
    *operands, mask = subject.inputs

    def found(*_: Tensor, **__: object) -> Tensor:
        return subject.call("emulated")

    assert_scores_match(found, *operands, key_mask=mask)


@each_subject
def test_order_does_not_matter(name: str, poisoned) -> None:
    """Bits are those of the native CPU kernels; scores keep the error budget instead."""
    subject = SUBJECTS[name](CPU)
    for variant in range(VARIANTS):
        expected = None if subject.ran == SCORES else outcome(subject, variant, "native")
        for order, seed in ORDERS:
            with emu.order(order, seed):
                found = outcome(subject, variant, "emulated")
            expected = found if expected is None else expected
            assert len(found) == len(expected)
            for index, (one, other) in enumerate(zip(found, expected, strict=True)):
                assert same_bits(one, other), (order, seed, variant, index)
        if subject.ran == SCORES:
            scores_in_budget(subject)


@each_subject
def test_launches(name: str) -> None:
    subject = SUBJECTS[name](CPU)
    before = emu.launches()
    subject.call("emulated")
    launches = emu.launches() - before
    if subject.ran in ONE_LAUNCH:
        assert launches == 1
    else:
        assert launches >= 1


def test_orders_come_back() -> None:
    """After a failure inside too; an unknown name is refused."""
    with pytest.raises(ValueError, match="one of forward, reverse, shuffled, got 'sideways'"):
        emu.set_order("sideways")
    with pytest.raises(RuntimeError, match=r"^inside$"), emu.order("reverse"):
        raise RuntimeError("inside")


def test_the_emulator_is_for_cpu_tensors() -> None:
    assert _backends.unavailable_reason("emulated", CPU) == ""
    with pytest.raises(RuntimeError, match="emulated cannot run on meta"):
        ek.patch_entropy(
            torch.zeros(28, 28, dtype=torch.uint8, device="meta"), 28, backend="emulated"
        )


def test_another_order_may_be_asked_for_from_outside(monkeypatch) -> None:
    for value, first in (("reverse", ("reverse", 0)), ("shuffled 7", ("shuffled", 7))):
        monkeypatch.setenv(emu.ORDER_SWITCH, value)
        assert emu.first_order() == first
