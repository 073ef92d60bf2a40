"""No host reads in decode steps, one per prefill, and no S x S mask where none is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import erase
from tests.hf.calls import Outcome, generate_into
from tests.hf.cases import Case, by_name
from tests.hf.operators import ran_ops
from tests.hf.place import ON_GPU
from tests.hf.watch import Watch
from tests.models import FAMILIES, LATE_LAYER, TEXT_LAYERS, shared_model
from tests.prompts import chat_processor, encode, photo

CASES = [by_name(name) for name in ("greedy_photo", "greedy_page", "ragged_batch", "two_images")]
READS_PER_PREFILL = 1


def watched(model: Any, case: Case, new_tokens: int, **options: int) -> Watch:
    prompt = case.build()[0]
    with torch.no_grad(), Watch(**options) as watch:
        generate_into(Outcome(), model, new_tokens, **prompt.inputs)
    return watch


def decode_reads(model: Any, case: Case) -> int:
    """Host reads that four more decode steps cost."""
    return watched(model, case, 7).total_reads - watched(model, case, 3).total_reads


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decode_steps_read_nothing(case: Case, family: str) -> None:
    model = shared_model(family)
    stock = decode_reads(model, case)
    config = erase.EraseConfig(**case.settings())
    with erase.prune(model, config, processor=chat_processor()) as session:
        assert decode_reads(model, case) <= stock
    assert session.prefills_pruned == 2


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_of_a_decode_step_reads_nothing(case: Case, family: str, with_mask: bool) -> None:
    """Not one read, with the whole mask or without: not even those that a stock forward makes."""
    model, inputs = shared_model(family), case.build()[0].inputs
    mask = inputs["attention_mask"]
    if not with_mask and not bool(mask.all()):
        del inputs["attention_mask"]  # padding then counts as text, which is no concern here
    config = erase.EraseConfig(**case.settings())
    with torch.no_grad(), erase.prune(model, config, processor=chat_processor()):
        cache = model(**inputs).past_key_values
        for step in range(1, 3):
            grown = torch.cat([mask, torch.ones_like(mask[:, :step])], dim=1)
            position = grown.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
            with Watch() as watch:
                model(
                    input_ids=torch.full_like(mask[:, :1], 300),
                    attention_mask=grown if with_mask else None,
                    position_ids=position[None].expand(3, -1, -1),
                    past_key_values=cache,
                )
            assert watch.reads == {}
            assert len(watch.attention) == TEXT_LAYERS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_read_per_prefill(case: Case, family: str) -> None:
    model = shared_model(family)
    stock = watched(model, case, 1)
    config = erase.EraseConfig(**case.settings())
    with erase.prune(model, config, processor=chat_processor()) as session:
        pruned = watched(model, case, 1)
    extra = pruned.reads - stock.reads
    assert extra.total() <= READS_PER_PREFILL, extra
    assert pruned.from_host == {}, "on an accelerator each of these waits for it"
    assert session.report.rows[0].layer is not None
    assert ran_ops({"patch_entropy_from_pixels", "text_to_vision_scores"}) <= set(pruned.ours)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_prefill_has_no_square_mask(family: str, with_mask: bool) -> None:
    """Batch 1 without padding: causal attention kernels, before and after pruning."""
    # A GPU has no fused kernel for grouped heads in fp32.
    model = shared_model(family, "sdpa", *([torch.bfloat16] if ON_GPU else []))
    case = by_name("greedy_photo")
    prompt = encode([[photo(5, 6), "Describe the image. How many people are there?"]])
    inputs = prompt.inputs
    if not with_mask:
        inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
    config = erase.EraseConfig(**case.settings())
    with torch.no_grad(), erase.prune(model, config, processor=chat_processor()) as session:
        vision = _vision_calls(model, inputs)
        text = len(session.reports[-1].rows[0].kept) + _text_tokens(prompt)
        # Every matrix of at least S2 x S2 would show; weights of the tiny model are smaller in one
        # direction or do not come out of an operator.
        with Watch(square_from=text) as watch:
            model(**inputs)
    calls = watch.attention[vision:]
    row = session.report.rows[0]
    before, after = _text_tokens(prompt) + len(row.candidates), text
    assert row.layer == LATE_LAYER
    assert [call.queries for call in calls] == [before] * (LATE_LAYER + 1) + [after] * (
        TEXT_LAYERS - LATE_LAYER - 1
    )
    assert all(call.mask is None for call in calls)
    assert all(call.is_causal for call in calls)
    lengths = {before, after, prompt.length}
    masks = [s for s in watch.square if s[1][-1] in lengths and s[1][-2] in lengths]
    assert masks == []


def test_square_masks_are_seen() -> None:
    """The watch does see them: a padded batch needs real masks."""
    model, case = shared_model("qwen2_5_vl"), by_name("ragged_batch")
    config = erase.EraseConfig(**case.settings())
    session = erase.prune(model, config, processor=chat_processor())
    with torch.no_grad(), session, Watch(square_from=1) as watch:
        model(**case.build()[0].inputs)
    widths = {max(row) for row in zip(*session.report.kv_lengths, strict=True)}
    assert any(call.mask is not None and call.mask[-1] in widths for call in watch.attention)
    assert any(shape[-1] in widths and shape[-2] in widths for _, shape in watch.square)


def _text_tokens(prompt: Any) -> int:
    return prompt.length - int((prompt.inputs["mm_token_type_ids"] == 1).sum())


def _vision_calls(model: Any, inputs: dict) -> int:
    """Attention calls of the vision tower alone."""
    with Watch() as watch:
        model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    reports_needed = model(**inputs)  # so that the session has a report to compare with
    assert reports_needed.logits is not None
    return len(watch.attention)
