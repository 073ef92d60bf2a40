"""The status word: what kernels that cannot raise leave for the host."""

from __future__ import annotations

import pytest
import torch

from erase_kernels import _status, check_status, raise_for_status, status_word
from erase_kernels._status import Status

CPU = torch.device("cpu")


def test_one_word_per_device() -> None:
    word = status_word(CPU)
    assert word.dtype == torch.int32
    assert word.tolist() == [0]
    assert status_word(CPU) is word


@pytest.mark.parametrize("bit", Status)
def test_every_bit_names_its_argument_and_is_cleared(bit: Status) -> None:
    status_word(CPU).fill_(int(bit))
    with pytest.raises(ValueError, match="expected") as raised:
        check_status(CPU)
    named = {"INDICES": "rows, columns", "SCORES": "query, key", "PIXELS": "pixel_values"}
    assert str(raised.value).startswith(named.get(bit.name, bit.name.lower()) + ":")
    check_status(CPU)


def test_several_at_once() -> None:
    with pytest.raises(ValueError, match=r"counts: .*; keep: "):
        raise_for_status(int(Status.KEEP | Status.COUNTS), CPU)
    raise_for_status(0, CPU)


def test_made_in_inference_mode_it_can_be_cleared_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_status, "_word", _status._word.__wrapped__)  # not the one made before
    with torch.inference_mode():
        assert not status_word(CPU).is_inference()
