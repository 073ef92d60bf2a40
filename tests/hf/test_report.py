"""What the session reports beside its choices: lengths, bytes, backends, counters, the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import erase
from tests.hf.cases import BASE_CONFIG, Case, by_name
from tests.hf.common import run_pruned
from tests.hf.place import BACKEND
from tests.models import TEXT_LAYERS, shared_model
from tests.prompts import chat_processor, encode, page, photo

KV_HEADS, HEAD_DIM, FLOAT_BYTES = 2, 16, 4
SLOT_BYTES = 2 * KV_HEADS * HEAD_DIM * FLOAT_BYTES
"""Key and value of one slot of one layer of the tiny models."""


def lengths(case: Case) -> tuple[int, int, int]:
    """(prompt, after stage 1, final) tokens of a batch of one."""
    prompt = case.build()[0]
    row = run_pruned(case, "qwen2_5_vl").reports[0].rows[0]
    text = prompt.length - row.visual_tokens
    return prompt.length, text + len(row.candidates), text + len(row.kept)


def test_bytes_of_a_batch_of_one() -> None:
    case = by_name("greedy_photo")
    whole, stage1, final = lengths(case)
    assert final < stage1 < whole
    report = run_pruned(case, "qwen2_5_vl").reports[0]
    layer = report.rows[0].layer
    assert report.kv_lengths == [final] * TEXT_LAYERS
    assert report.kv_bytes.before == TEXT_LAYERS * whole * SLOT_BYTES
    assert report.kv_bytes.after_prefill == TEXT_LAYERS * final * SLOT_BYTES
    assert report.kv_bytes.after_first_decode == TEXT_LAYERS * (final + 1) * SLOT_BYTES
    # Storage: eviction happens in place, so the layers up to the pruning one keep what stage 1
    # left until the first decode step, whose concatenation allocates anew.
    early, late = layer + 1, TEXT_LAYERS - layer - 1
    assert report.kv_storage_bytes.before == TEXT_LAYERS * whole * SLOT_BYTES
    assert report.kv_storage_bytes.after_prefill == (early * stage1 + late * final) * SLOT_BYTES
    assert report.kv_storage_bytes.after_first_decode == TEXT_LAYERS * (final + 1) * SLOT_BYTES


def test_bytes_without_decoding() -> None:
    case = by_name("labels")
    report = run_pruned(case, "qwen2_5_vl").reports[0]
    assert report.kv_bytes.after_first_decode is None
    assert report.kv_storage_bytes.after_first_decode is None


def test_nothing_cached() -> None:
    report = run_pruned(by_name("direct"), "qwen2_5_vl").reports[0]
    assert report.kv_lengths == []
    assert report.kv_bytes.after_prefill == 0
    assert "compact_kv_" not in report.backends


def test_lengths_of_a_ragged_batch() -> None:
    case = by_name("ragged_batch")
    report = run_pruned(case, "qwen2_5_vl").reports[0]
    prompt = case.build()[0]
    valid = prompt.inputs["attention_mask"].sum(1).cpu()
    visual = (prompt.inputs["mm_token_type_ids"] == 1).sum(1).cpu()
    kept = torch.tensor([len(row.kept) for row in report.rows])
    want = (valid - visual + kept).tolist()
    assert report.kv_lengths == [[length] * TEXT_LAYERS for length in want]
    assert len(set(want)) == len(want), "rows of one length prove nothing"
    longest = max(want)
    assert report.kv_bytes.after_prefill == TEXT_LAYERS * longest * len(want) * SLOT_BYTES


def test_report_objects_are_independent() -> None:
    """A report is a record: later requests and the caller's edits of others do not change it."""
    model = shared_model("qwen2_5_vl")
    first, second = (encode([[picture, "Describe."]]) for picture in (photo(5, 6), page(6, 7)))
    config = erase.EraseConfig(**BASE_CONFIG)
    options = {"max_new_tokens": 2, "do_sample": False}
    with torch.no_grad(), erase.prune(model, config, processor=chat_processor()) as session:
        model.generate(**first.inputs, **options)
        report = session.report
        before = (str(report), report.rows[0].kept.tolist(), report.rows[0].scores.tolist())
        model.generate(**second.inputs, **options)
        assert session.report is not report
        assert list(session.reports) == [report, session.report]
    assert (str(report), report.rows[0].kept.tolist(), report.rows[0].scores.tolist()) == before


def test_keep_reports() -> None:
    model, prompt = shared_model("qwen2_5_vl"), encode([[photo(3, 4), "Describe."]])
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG), keep_reports=2) as s:
        assert s.report is None
        reports = []
        for _ in range(3):
            model(**prompt.inputs)
            reports.append(s.report)
        assert list(s.reports) == reports[1:]
        assert (s.prefills_seen, s.prefills_pruned) == (3, 3)


@pytest.mark.parametrize(("name", "approximate"), [("greedy_photo", False), ("pixels_bf16", True)])
def test_approximate_pixels(name: str, approximate: bool) -> None:
    report = run_pruned(by_name(name), "qwen2_5_vl").reports[0]
    assert report.approximate_pixels is approximate
    assert ("approximate" in str(report)) is approximate


def test_table() -> None:
    report = run_pruned(by_name("ragged_batch"), "qwen2_5_vl").reports[0]
    lines = str(report).splitlines()
    images = sum(max(1, len(row.images)) for row in report.rows)
    assert len(lines) == 1 + images + 1
    assert len({len(line) for line in lines[:-1]}) == 1
    first = report.rows[0]
    cells = lines[1].split()
    assert cells[:2] == ["0", "0"]
    assert cells[2] == f"{first.images[0].median:.3f}"
    assert [int(cell) for cell in cells[3:8]] == [
        first.images[0].level,
        len(first.images[0].entropy),
        len(first.images[0].kept),
        first.layer,
        len(first.kept),
    ]
    assert cells[8:] == [f"{first.kept_ratio:.1%}", f"{first.prefill_ratio:.1%}"]
    assert lines[0].split()[-2:] == ["kept", "prefill"]
    text_only = next(line for line in lines[1:] if line.split()[1] == "-")
    assert text_only.split()[-2:] == ["-", "-"]
    assert BACKEND in lines[-1]


def test_ratios_of_a_row() -> None:
    """30 tokens of 6 layers: 22 enter layers 0 to 3, 7 the last two."""
    report = run_pruned(by_name("greedy_photo"), "qwen2_5_vl").reports[0]
    row = report.rows[0]
    assert (row.visual_tokens, len(row.candidates), row.layer, len(row.kept)) == (30, 22, 3, 7)
    assert report.num_layers == TEXT_LAYERS == 6
    assert row.kept_ratio == 7 / 30
    assert row.prefill_ratio == pytest.approx((4 * 22 + 2 * 7) / (6 * 30), rel=1e-12)


def test_ratios_of_a_ragged_batch() -> None:
    """Each row by itself: its images together, its own layer, None without images."""
    rows = run_pruned(by_name("ragged_batch"), "qwen2_5_vl").reports[0].rows
    for row in rows:
        if not row.images:
            assert row.kept_ratio is None
            assert row.prefill_ratio is None
            continue
        seen = sum(len(row.candidates if i <= row.layer else row.kept) for i in range(TEXT_LAYERS))
        assert row.prefill_ratio == pytest.approx(seen / (TEXT_LAYERS * row.visual_tokens))
        assert row.kept_ratio == int(row.visual_tokens * 0.25) / row.visual_tokens
    assert {row.layer for row in rows} == {1, 3, None}


def test_ratios_without_a_second_stage() -> None:
    """Realised, not asked for: one share in all layers."""
    report = run_pruned(by_name("budget_met"), "qwen2_5_vl").reports[0]
    row = report.rows[0]
    assert (row.layer, row.visual_tokens, len(row.kept)) == (None, 42, 21)
    assert row.kept_ratio == row.prefill_ratio == 0.5


def test_ratios_where_all_goes() -> None:
    row = run_pruned(by_name("nothing_left"), "qwen2_5_vl").reports[0].rows[0]
    assert (len(row.kept), row.kept_ratio) == (0, 0.0)
    assert row.prefill_ratio == pytest.approx(4 * len(row.candidates) / (6 * 30))


def test_report_does_not_hold_the_cache() -> None:
    """A kept report must not keep keys and values alive."""
    import gc
    import weakref

    model, prompt = shared_model("qwen2_5_vl"), encode([[photo(3, 4), "Describe."]])
    with torch.no_grad(), erase.prune(model, erase.EraseConfig(**BASE_CONFIG)) as session:
        out: Any = model(**prompt.inputs)
        cache = weakref.ref(out.past_key_values)
        del out
        gc.collect()
        assert cache() is None
        assert session.report.kv_bytes.after_prefill > 0
