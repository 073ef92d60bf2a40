"""The status word: what kernels that cannot raise leave for the host."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from erase_kernels import _native, _status, check_status, raise_for_status, status_word
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
    monkeypatch.setattr(_status, "_words", {})  # not the one made before
    with torch.inference_mode():
        assert not status_word(CPU).is_inference()


def test_threads_get_the_same_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is replaced would be freed under the kernels that were given it."""
    make = _status._make_word

    def slowly(device: torch.device) -> torch.Tensor:
        time.sleep(0.05)
        return make(device)

    monkeypatch.setattr(_status, "_words", {})
    monkeypatch.setattr(_status, "_make_word", slowly)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(status_word(CPU))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(word is status_word(CPU) for word in found)


def test_a_capture_does_not_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda", 5)
    with pytest.raises(RuntimeError, match="must not be captured"):
        status_word(device)
    assert device not in _status._words
    # Where C++ asks for it, nothing but an address or 0 comes back.
    assert not _native._word_address(5)
