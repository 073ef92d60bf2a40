"""Models spread over devices: layers on another device, and weights that accelerate offloads.

Without a GPU the second device is an emulation (``tests/hf/two_devices.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

import erase
from erase.hf.gather import by_device, gather_rows, gather_slots_
from erase_kernels import compact_rows
from tests.hf.calls import Outcome, direct_labels
from tests.hf.cases import Case, by_name
from tests.hf.common import (
    assert_cache,
    assert_outcomes,
    assert_reports,
    limits,
    run_oracle,
    snapshot,
)
from tests.hf.operators import ran_ops
from tests.hf.place import DEVICE, ON_GPU
from tests.hf.two_devices import HERE, OTHER, TwoDevices, device_of, place, spread
from tests.models import TEXT_LAYERS, build_model
from tests.prompts import chat_processor

FAMILY = "qwen2_5_vl"
CASES = [by_name(name) for name in ("ragged_batch", "turns_ragged_image", "direct_loop_batch")]
FIRST = 3
"""Layers from this one on are elsewhere: some rows are pruned before it, some after it."""
ON_BOTH = ran_ops({"compact_rows", "compact_kv_", "text_to_vision_scores"}) | {"linear"}
"""What must run on the second device too."""


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def prune(model: Any, case: Case, **fields: Any) -> erase.Session:
    return erase.prune(model, erase.EraseConfig(**case.settings(**fields)), chat_processor())


def check(outcome: Outcome, session: erase.Session, case: Case, **fields: Any) -> None:
    want, oracle = run_oracle(case, FAMILY, **fields)
    limit = limits(case, FAMILY, **fields)
    assert_reports(list(session.reports), oracle.turns, kv=outcome.cache is not None, limit=limit)
    assert_outcomes(outcome, want, oracle, limit)
    assert_cache(outcome, oracle)


# -- accelerate ----------------------------------------------------------------------------------


def dispatch(model: Any, **places: Any) -> None:
    """Everything on the CPU but what ``places`` names, each module where its weights are."""
    stack = {f"language_model.layers.{i}": "cpu" for i in range(TEXT_LAYERS)}
    stack |= dict.fromkeys(["visual", "language_model.norm", "language_model.rotary_emb"], "cpu")
    stack["language_model.embed_tokens"] = "cpu"
    whole = {f"model.{name}": device for name, device in stack.items()} | {"lm_head": "cpu"}
    model.cpu()
    folder = places.pop("offload_dir", None)
    dispatch_model(model, whole | places, main_device="cpu", offload_dir=folder, force_hooks=True)


def layers(*numbers: int) -> list[str]:
    return [f"model.language_model.layers.{i}" for i in numbers]


def offload(model: Any, how: str, folder: Path) -> None:
    if how == "cpu":
        cpu_offload(model, execution_device=DEVICE)
    elif how == "disk":
        disk_offload(model, str(folder), execution_device=DEVICE)
    else:
        elsewhere = dict.fromkeys([*layers(2, 4), "model.visual"], "disk")
        dispatch(model, offload_dir=str(folder), **elsewhere)


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("how", ["cpu", "disk", "some"])
def test_offloaded_weights(how: str, query: str, tmp_path: Path) -> None:
    """Weights come from memory or disk for the time of each module's forward."""
    case, model = CASES[0], build_model(FAMILY)
    offload(model, how, tmp_path)
    assert any(weight.device.type == "meta" for weight in model.parameters())
    before = snapshot(model)
    with prune(model, case, query=query) as session:
        check(case.call(model, case.build()), session, case, query=query)
    assert snapshot(model) == before


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_while_a_session_is_open(how: str, tmp_path: Path) -> None:
    case, model = CASES[0], build_model(FAMILY)
    with prune(model, case) as session:
        offload(model, how, tmp_path)
        check(case.call(model, case.build()), session, case)


@pytest.mark.parametrize("query", ["exact", "released"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_first_layers_on_the_device(case: Case, query: str) -> None:
    """With a GPU, embeddings and half of the layers are on it, all else on the CPU."""
    model = build_model(FAMILY)
    there = ["model.language_model.embed_tokens", "model.language_model.rotary_emb"]
    dispatch(model, **dict.fromkeys([*there, *layers(*range(FIRST))], DEVICE))
    with prune(model, case, query=query) as session:
        outcome = case.call(model, case.build())
    cache = [layer.keys.device for layer in outcome.cache.layers]
    assert cache == [DEVICE] * FIRST + [HERE] * (TEXT_LAYERS - FIRST)
    assert session.devices == {DEVICE, HERE}
    check(outcome, session, case, query=query)


# -- two devices without a GPU -------------------------------------------------------------------


@pytest.fixture
def split() -> Iterator[Any]:
    """A model whose last layers are on another device."""
    model = build_model(FAMILY)
    stack = model.model.language_model
    with spread(dict.fromkeys([*stack.layers[FIRST:], stack.norm], OTHER) | {model.lm_head: HERE}):
        yield model


if not ON_GPU:

    @pytest.mark.parametrize("query", ["exact", "released"])
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_layers_on_two_devices(split: Any, case: Case, query: str) -> None:
        with TwoDevices() as devices, prune(split, case, query=query) as session:
            outcome = case.call(split, case.build())
        assert devices.seen >= ON_BOTH
        cache = [device_of(layer.keys) for layer in outcome.cache.layers]
        assert cache == [HERE] * FIRST + [OTHER] * (TEXT_LAYERS - FIRST)
        assert session.devices == {HERE, OTHER}
        check(outcome, session, case, query=query)

    def test_gradients_on_two_devices(split: Any) -> None:
        """Eviction is not in place there: autograd needs the old keys and values."""
        case = by_name("labels_batch")
        whole = build_model(FAMILY).requires_grad_(True)
        split.requires_grad_(True)
        with torch.enable_grad():
            with prune(whole, case):
                direct_labels(whole, case.build()).loss.backward()
            with TwoDevices(), prune(split, case):
                direct_labels(split, case.build()).loss.backward()
        pairs = list(zip(split.parameters(), whole.parameters(), strict=True))
        assert any(a.grad is not None and bool(a.grad.any()) for a, _ in pairs)
        for a, b in pairs:
            torch.testing.assert_close(a.grad, b.grad)

    def test_the_emulation(split: Any) -> None:
        """It refuses what devices refuse, and a stock model runs on it."""
        index = torch.zeros(1, 1, dtype=torch.int32)
        with TwoDevices() as devices:
            other = torch.ones(2, device=OTHER)
            assert other.device == OTHER
            assert (other + 1).device == OTHER
            assert other.to("cpu").device == HERE
            with pytest.raises(RuntimeError, match="same device"):
                torch.ones(2) + other
            rows = other.reshape(1, 2, 1)
            with pytest.raises(ValueError, match="keep"):
                compact_rows([rows], index, index[0])
            split(**CASES[0].build()[0].inputs)
        assert "scaled_dot_product_attention" in devices.seen

    def test_gathers_group_by_device() -> None:
        tensors = [torch.rand(2, 5, 3) for _ in range(4)]
        index = torch.tensor([[0, 2, 4], [1, 3, 0]], dtype=torch.int32)
        counts = torch.tensor([3, 2], dtype=torch.int32)
        want = compact_rows(tensors, index, counts)
        planes = [t.unsqueeze(1).clone() for t in tensors]
        with TwoDevices():
            for tensor in (tensors[1], tensors[3], planes[0], planes[3]):
                place(tensor, OTHER)
            groups = [(places, where[0].device) for places, _, where in by_device(tensors, index)]
            got = gather_rows(tensors, index, counts)
            gather_slots_(planes, index, counts)
        assert groups == [([0, 2], HERE), ([1, 3], OTHER)]
        assert [device_of(t) for t in got] == [HERE, OTHER, HERE, OTHER]
        for a, b, plane in zip(got, want, planes, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(plane[0, 0, :3], b[0])
            assert torch.equal(plane[1, 0, :2], b[1, :2])
