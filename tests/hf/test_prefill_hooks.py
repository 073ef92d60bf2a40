"""What is in place only while a prefill runs: hooks of layers, and the compiler switched off."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import erase
from erase.hf.prefill_hooks import Eagerly, run_compiled, run_eagerly
from tests.hf.cases import BASE_CONFIG, by_name
from tests.hf.place import DEVICE
from tests.models import FAMILIES, build_model, shared_model
from tests.prompts import chat_processor, encode, photo


def test_layers_carry_hooks_during_prefills_only() -> None:
    """Also after an exception; a user's own hooks stay."""
    model = build_model(FAMILIES[0], num_hidden_layers=2)
    inputs = encode([[photo(5, 6), "Describe the image."]]).inputs
    layers = model.model.language_model.layers
    seen: list[int] = []
    own = layers[0].register_forward_pre_hook(
        lambda *_: seen.append(sum(len(x._forward_pre_hooks) for x in layers))
    )
    settings = {**BASE_CONFIG, "early_layer": 0, "late_layer": 0}
    config = erase.EraseConfig(**settings)
    with torch.no_grad(), erase.prune(model, config, chat_processor()):
        cache = model(**inputs).past_key_values
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
        with pytest.raises(ValueError, match="pixel_values"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"] + 0.5})
        assert list(layers[0]._forward_pre_hooks) == [own.id]
    assert seen == [3, 1]
    own.remove()


def test_layers_without_their_hooks_are_noticed() -> None:
    case, model = by_name("greedy_photo"), shared_model(FAMILIES[0])
    stack = model.model.language_model
    with erase.prune(model, erase.EraseConfig(**case.settings()), chat_processor()) as session:
        handle = stack.register_forward_pre_hook(lambda *_: session._hooks._inside.close())
        with pytest.raises(RuntimeError, match="6 of 6 decoder layers ran without their hooks"):
            model(**case.build()[0].inputs)
        handle.remove()
        assert session.prefills_pruned == 0
        model(**case.build()[0].inputs)
        assert session.prefills_pruned == 1


def test_compiler_is_off_for_the_last_user_too() -> None:
    """Prefills in several threads overlap; one that an interrupt left behind does not count."""

    @torch.compile(backend="eager")
    def compiling() -> bool:
        return torch.compiler.is_compiling()

    first, second, lost = Eagerly(), Eagerly(), Eagerly()
    assert compiling()
    run_eagerly(first)
    run_eagerly(second)
    run_eagerly(lost)
    run_compiled(first)
    assert not compiling()
    del lost
    run_compiled(second)
    assert compiling()
    run_compiled(second)
    assert compiling()


def test_decoding_beside_prefills() -> None:
    """Another thread decodes on its own cache while hooks come and go."""
    case, model = by_name("greedy_photo"), shared_model(FAMILIES[0])
    inputs = case.build()[0].inputs
    steps = 30
    wrong: list[str] = []

    def decode(cache: Any) -> torch.Tensor:
        logits = []
        with torch.no_grad():
            for step in range(steps):
                where = torch.full((3, 1, 1), 60 + step, device=DEVICE)
                ids = torch.full((1, 1), 300, device=DEVICE)
                out = model(input_ids=ids, position_ids=where, past_key_values=cache)
                logits.append(out.logits)
        return torch.cat(logits)

    def beside(cache: Any, want: torch.Tensor) -> None:
        if not torch.equal(decode(cache), want):
            wrong.append("another thread's prefill changed decoding")

    config = erase.EraseConfig(**case.settings())
    with torch.no_grad(), erase.prune(model, config, chat_processor()) as session:
        first = model(**inputs)
        want = decode(first.past_key_values)
        thread = threading.Thread(
            target=beside, args=(model(**inputs).past_key_values, want), daemon=True
        )
        thread.start()
        while thread.is_alive():
            assert torch.equal(model(**inputs).logits[:, -1], first.logits[:, -1])
        thread.join()
        assert not any(x._forward_pre_hooks for x in model.model.language_model.layers)
        assert session.prefills_seen == session.prefills_pruned > 2
    assert not wrong
