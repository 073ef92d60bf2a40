"""Prebuilt 4-D masks: taken where they are causality and padding, refused where they say more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.hf.cases import by_name
from tests.hf.place import DEVICE
from tests.hf.static import new_cache, positions, session_of
from tests.models import shared_model


def prebuilt(mask: torch.Tensor, kind: str, room: int = 0) -> torch.Tensor:
    """Causality and validity as one 4-D mask; ``kind``: bool, float or large (-1e9)."""
    length = mask.shape[1]
    valid = torch.nn.functional.pad(mask.bool(), (0, room - length if room else 0))
    causal = torch.ones(length, valid.shape[1], dtype=torch.bool, device=mask.device).tril()
    seen = (causal & valid[:, None, :])[:, None]
    if kind == "bool":
        return seen
    lowest = {"float": torch.finfo(torch.float32).min, "inf": -torch.inf, "large": -1e9}[kind]
    return torch.zeros(seen.shape, device=mask.device).masked_fill(~seen, lowest)


@pytest.mark.parametrize("kind", ["bool", "float", "large"])
@pytest.mark.parametrize("wrap", [lambda mask: mask, lambda mask: {"full_attention": mask}])
@pytest.mark.parametrize("name", ["greedy_photo", "ragged_batch"])
def test_prebuilt_masks(name: str, wrap: Callable[[Any], Any], kind: str) -> None:
    """A 4-D mask that is causality and padding prunes as its 2-D form does."""
    case, model = by_name(name), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    with torch.no_grad(), session_of(model, case) as session:
        plain = model(**inputs)
        given = {**inputs, "position_ids": positions(model, inputs)}
        given["attention_mask"] = wrap(prebuilt(inputs["attention_mask"], kind))
        got = model(**given)
        step = {"input_ids": inputs["input_ids"][:, :1] * 0 + 300}
        steps = []
        for result in (plain, got):
            end = inputs["attention_mask"].sum(-1, keepdim=True) + model.model.rope_deltas
            step["position_ids"] = end[None].expand(3, -1, -1)
            steps.append(model(**step, past_key_values=result.past_key_values).logits)
    first, second = session.reports
    for a, b in zip(first.rows, second.rows, strict=True):
        assert torch.equal(a.kept, b.kept)
    assert torch.equal(got.logits[:, -1], plain.logits[:, -1])
    assert torch.equal(*steps)


def test_mask_over_all_slots() -> None:
    """A 2-D mask as wide as the cache, as some callers keep one for all steps."""
    case, model = by_name("ragged_batch"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    length, room = inputs["input_ids"].shape[1], 200
    wide = torch.nn.functional.pad(inputs["attention_mask"], (0, room - length))
    with torch.no_grad(), session_of(model, case) as session:
        plain = model(**inputs, past_key_values=new_cache(model, room))
        given = {**inputs, "attention_mask": wide, "position_ids": positions(model, inputs)}
        got = model(**given, past_key_values=new_cache(model, room))
        where = inputs["attention_mask"].sum(-1, keepdim=True) + model.model.rope_deltas
        steps = []
        for result, mask in ((plain, wide[:, : length + 1]), (got, wide)):
            mask = mask.index_fill(1, torch.tensor([length], device=DEVICE), 1)
            step = model(
                input_ids=torch.full_like(where, 300),
                attention_mask=mask,
                position_ids=where[None].expand(3, -1, -1),
                past_key_values=result.past_key_values,
            )
            steps.append(step.logits)
    assert session.prefills_pruned == 2
    assert torch.equal(got.logits[:, -1], plain.logits[:, -1])
    assert torch.equal(*steps)


def spoiled(kind: str, mask: torch.Tensor) -> torch.Tensor:
    """A prebuilt mask that says more than causality and padding."""
    out = prebuilt(mask, "float" if kind == "bias" else "bool")
    if kind == "bidirectional":
        out[-1, :, 60:64, 60:64] = True
    elif kind == "packed":
        out[-1, :, 70:, :70] = False
    elif kind == "window":
        out = out & ~torch.ones_like(out).tril(-20)
    elif kind == "one_entry":
        out[-1, 0, 70, 60] = False
    elif kind == "heads":
        out = out.repeat(1, 4, 1, 1)
        out[-1, 2, 70, 60] = False
    else:
        out = out + 0.5 * torch.eye(out.shape[-1], device=out.device)
    return out


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "kind", ["bidirectional", "packed", "window", "one_entry", "heads", "bias"]
)
def test_other_masks_are_refused(kind: str, static: bool) -> None:
    case, model = by_name("ragged_batch"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    cache = new_cache(model, 400) if static else None
    with torch.no_grad(), session_of(model, case) as session:
        given = {**inputs, "position_ids": positions(model, inputs), "past_key_values": cache}
        given["attention_mask"] = spoiled(kind, inputs["attention_mask"])
        with pytest.raises(ValueError, match=r"attention_mask: row \d is not a causal mask"):
            model(**given)
        assert session.prefills_pruned == 0
        assert cache is None or not cache.is_initialized
        # The session goes on.
        model(**inputs)
        assert session.prefills_pruned == 1


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 1, 5, 5, dtype=torch.bool),
        torch.ones(1, 1, 9999, dtype=torch.bool),
        {"sliding_attention": None},
        "causal",
    ],
    ids=["sizes", "three", "kinds", "word"],
)
def test_wrong_kinds_of_masks(mask: Any) -> None:
    case, model = by_name("greedy_photo"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    given = {**inputs, "position_ids": positions(model, inputs), "attention_mask": mask}
    with torch.no_grad(), session_of(model, case), pytest.raises(ValueError, match=r"^attention_m"):
        model(**given)


def test_prebuilt_mask_on_a_pruned_cache() -> None:
    """A later text turn with a prebuilt mask over tokens, on a dynamic cache."""
    case, model = by_name("ragged_batch"), shared_model("qwen2_5_vl")
    inputs = case.build()[0].inputs
    mask = torch.cat(
        [inputs["attention_mask"], torch.ones_like(inputs["attention_mask"][:, :4])], 1
    )
    ids = torch.full_like(mask[:, :4], 300)
    made = prebuilt(mask, "bool")[:, :, -4:]
    start = inputs["attention_mask"].sum(-1, keepdim=True)
    results = []
    with torch.no_grad(), session_of(model, case):
        for given in (mask, made, made & (torch.arange(4, device=DEVICE) > 1)[:, None]):
            cache = model(**inputs).past_key_values
            where = start + torch.arange(4, device=DEVICE) + model.model.rope_deltas
            call = {"position_ids": where[None].expand(3, -1, -1), "past_key_values": cache}
            if len(results) < 2:
                results.append(model(input_ids=ids, attention_mask=given, **call).logits)
                continue
            with pytest.raises(ValueError, match=r"^attention_mask: expected a causal mask"):
                model(input_ids=ids, attention_mask=given, **call)
    assert torch.equal(*results)
