"""``python -m bench.decode`` measures what it says, and checks before it times."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import decode
from erase.demo.model import build_model
from erase.demo.run import DemoSettings

SETTINGS = DemoSettings(min_tokens=16, max_tokens=30)


@pytest.mark.parametrize("kind", decode.KINDS, ids=lambda kind: kind.name)
def test_both_sides_hold_as_many_slots(kind: decode.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders: list[decode.Decoder] = []
    start = decode.Decoder.__init__

    def noted(self: decode.Decoder, *args: Any) -> None:
        start(self, *args)
        decoders.append(self)

    monkeypatch.setattr(decode.Decoder, "__init__", noted)
    models = tuple(build_model(0, torch.device("cpu")) for _ in range(2))
    with torch.no_grad():
        result = decode.measure(kind, models, SETTINGS, steps=3)
    pruned, plain = (decoder.cache.layers[0] for decoder in decoders)
    steps = decode.WARMUP + 3
    lengths = [int(layer.get_seq_length()) for layer in (pruned, plain)]
    assert lengths == [result.slots + steps] * 2
    assert pruned.keys.shape == plain.keys.shape
    assert decoders[0].cache._erase.evicted > 0
    assert result.stock > 0 < result.session
    assert len(decode.cells(result)) == len(decode.HEADINGS)
    assert f"| {kind.name} | {result.slots} |" in decode.markdown([result], {"device": "a CPU"})


def test_a_changed_logit_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kind = build_model(0, torch.device("cpu")), decode.KINDS[0]
    with torch.no_grad():
        decode.check_identity(model, kind, SETTINGS)
        method = decode.method_for
        monkeypatch.setattr(decode, "method_for", lambda model, **_: method(model, keep_ratio=0.2))
        with pytest.raises(AssertionError, match="changed the logits"):
            decode.check_identity(model, kind, SETTINGS)
