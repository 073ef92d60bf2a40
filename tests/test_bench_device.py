"""The benchmarks' half for a GPU, on small shapes, with a host's clock or a make-believe GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import device_rows, device_wins, problems_states, readme
from bench.device_report import DeviceResult, load_results, write
from bench.device_rows import Target, all_rows, make_problem
from bench.problem import COMPILED, EAGER
from bench.rows import PLAIN, PUBLISHED
from bench.timing import CALLS, GRAPH, DeviceTiming
from erase_kernels.testing import Case

CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32
SCORES = {"heads": 6, "key_heads": 2, "depth": 8, "keys": 90, "rows": 7, "batch": 2}
CACHES = {"layers": 2, "key_heads": 2, "keys": 50, "depth": 8, "ratio": 0.4, "batch": 3}
TILES = {"height": 56, "width": 112, "layout": "tiles", "tile": 56, "cell": 14}
SMALL = {
    "image": ("patch_entropy", {"height": 84, "width": 56, "patch_size": 28, "images": 2}, F32, ""),
    "hwc": ("patch_entropy", {"height": 84, "width": 56, "patch_size": 28}, F32, "HWC"),
    "qwen": (
        "patch_entropy_from_pixels",
        {"height": 84, "width": 56, "layout": "qwen"},
        torch.float16,
        "",
    ),
    "tiles": ("patch_entropy_from_pixels", TILES, BF16, ""),
    "selection": ("complexity_plan", {"images": 3, "cells": 200, "ratio": 0.15}, F32, ""),
    "scores": ("text_to_vision_scores", SCORES, BF16, ""),
    "caches": ("compact_kv_", CACHES, BF16, ""),
    "cache": ("compact_kv_", {**CACHES, "batch": 1}, F32, ""),
    "paged": ("compact_kv_", CACHES, BF16, "paged"),
    "rows": ("compact_rows", {"keys": 50, "hidden": 16, "depth": 8, "ratio": 0.4}, BF16, ""),
}


def small_problem(name: str) -> Any:
    operator, sizes, dtype, variant = SMALL[name]
    return make_problem(operator, Case(operator, name, sizes, ""), CPU, dtype, variant)


@pytest.mark.parametrize("name", SMALL)
def test_all_implementations_of_a_row_agree(name: str) -> None:
    problem = small_problem(name)
    problem.verify(lambda operands: problem.ours("native", operands), True)
    assert {PUBLISHED, PLAIN} <= problem.peers.keys()
    for function in problem.peers.values():
        problem.verify(function, False)
    if problem.compiled is not None:
        problem.verify(problem.compiled, False)
    assert 0 < problem.touched <= problem.bytes_moved


@pytest.mark.parametrize("name", ["image", "selection", "scores", "caches", "paged"])
def test_a_wrong_result_is_noticed(name: str) -> None:
    problem = small_problem(name)

    def wrong(operands: Any) -> Any:
        result = problem.ours("native", operands)
        first = result if isinstance(result, torch.Tensor) else result[-1]
        first += 1
        return result

    for strict in (True, False):
        with pytest.raises(AssertionError, match=r"differ|off by"):
            problem.verify(wrong, strict)


def test_full_attention_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EAGER in small_problem("scores").peers
    monkeypatch.setattr(problems_states, "_free_memory", lambda _: 1 << 10)
    problem = small_problem("scores")
    assert EAGER not in problem.peers
    assert problem.make(0)[2].shape[2] == SCORES["rows"]


def test_rows_and_targets_are_the_agreed_ones() -> None:
    table = {row.name: row for row in all_rows()}
    assert len(table) == len(all_rows())
    for row in table.values():
        device_rows.find_case(row.operator, row.case)
    entropy = table["patch_entropy page_16384 uint8"]
    assert entropy.target.microseconds == 25
    assert entropy.target.ratios == {PUBLISHED: 100, COMPILED: 20}
    assert table["patch_entropy_from_pixels page_16384 float32"].target.microseconds == 60
    for case in ("page_16384", "sixty_four_1024"):
        row = table[f"complexity_plan + segmented_topk {case} float32"]
        assert row.target.microseconds == 20
    scores = table["text_to_vision_scores page_16384_64 bfloat16"].target
    assert (scores.microseconds, scores.extra_bytes) == (50, 1 << 20)
    assert scores.ratios == {PUBLISHED: 20, COMPILED: 1}
    caches = table["compact_kv_ late_16384 bfloat16"].target
    assert (caches.copy_share, caches.launches, caches.ratios) == (0.7, 1, {PUBLISHED: 4})
    sizes = device_rows.find_case("compact_kv_", "late_16384").sizes
    assert int(sizes["keys"] * sizes["ratio"]) == 2457
    assert set(readme.GPU_ROWS) == {row.name for row in table.values() if row.headline}


def timed(micro: float, how: str = GRAPH) -> DeviceTiming:
    return DeviceTiming(micro * 1e-6, micro * 0.9e-6, micro * 1.1e-6, 9, 10, how)


def a_result(**changes: Any) -> DeviceResult:
    target = Target(25, {PUBLISHED: 100, COMPILED: 2}, 1 << 20, 0.5, 1)
    result = DeviceResult("r", ("triton",), 20_000_000, 8_000_000_000, 1, 4e12, 8e14, target)
    result.seconds |= {"triton": timed(10), PUBLISHED: timed(1000), COMPILED: timed(20)}
    result.memory |= {"triton": 1 << 20, PUBLISHED: 5 << 20}
    result.launches |= {"triton": 1}
    for name, value in changes.items():
        setattr(result, name, getattr(result, name) | value)
    return result


def test_verdicts() -> None:
    good = a_result()
    assert good.floor() == (1e-5, "matmul rate")
    assert good.share("triton", "copy bandwidth") == pytest.approx(0.5)
    assert (good.missed("triton"), good.verdict("triton")) == ([], "met")
    for change, words in (
        ({"seconds": {PUBLISHED: timed(900)}}, "90.00x published, wanted 100x"),
        ({"seconds": {PLAIN: timed(9)}}, "0.90x plain torch, wanted 1x"),
        ({"seconds": {"triton": timed(10, CALLS)}}, "makes the host wait"),
        ({"memory": {"triton": 2 << 20}}, "2.00 MiB extra, wanted 1.00"),
        ({"launches": {"triton": 3}}, "3 launches, wanted 1"),
    ):
        assert a_result(**change).missed("triton") == [words]
    slow = a_result(seconds={"triton": timed(30)}).missed("triton")
    assert slow[0] == "30.0 us, wanted 25"
    assert "17% of the copy bandwidth, wanted 50%" in slow
    unknown = a_result(errors={COMPILED: "skipped: out of time"})
    del unknown.seconds[COMPILED]
    assert unknown.verdict("triton") == "open: no compiled (skipped: out of time)"
    failed = a_result(errors={"triton": "ValueError: no"})
    del failed.seconds["triton"]
    assert failed.missed("triton") == ["ValueError: no"]


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    results = [a_result(), a_result(errors={PLAIN: "OutOfMemoryError: none left"})]
    facts = {"device": "a GPU", "revision": "abc"}
    paths = write(tmp_path, results, facts)
    assert load_results(paths[0]) == (facts, results)
    text = paths[1].read_text()
    assert "- revision: abc" in text
    assert "| r | triton | 10.0 (9.0-11.0) | 50% / 100% | 1.0 | 100.0 | - | 2.0 |" in text
    assert "- r: plain torch: OutOfMemoryError: none left" in text


def both(row: str, native: float, triton: float) -> DeviceResult:
    """A row that two backends ran."""
    result = a_result(seconds={"native": timed(native), "triton": timed(triton)})
    result.row, result.backends = row, ("native", "triton")
    return result


def test_the_faster_backend_is_named(tmp_path: Path) -> None:
    results = [
        both("patch_entropy page uint8", 8, 10),
        both("patch_entropy page uint8 HWC", 10, 10.2),
        both("complexity_plan + segmented_topk page float32", 12, 10),
        both("compact_kv_ late bfloat16 paged", 10, 20),
        a_result(),
    ]
    assert [result.fastest() for result in results[:3]] == ["native", "native", "triton"]
    assert device_wins.winner(results[4]) is None
    lines = device_wins.section(results)
    assert lines[3:] == [
        "| operator | native | triton | even (within 3%) |",
        "| --- | --- | --- | --- |",
        "| patch_entropy | 1: page uint8 1.25x | 0 | 1: page uint8 HWC |",
        "| complexity_plan + segmented_topk | 0 | 1: page float32 1.20x | 0 |",
        "| compact_kv_ paged | 1: late bfloat16 2.00x | 0 | 0 |",
        "",
        "Never the fastest: triton on patch_entropy; native on complexity_plan + segmented_topk; "
        "triton on compact_kv_ paged.",
    ]
    assert "\n".join(lines) in write(tmp_path, results, {})[1].read_text()
    assert device_wins.section([a_result()]) == []


def test_readme_names_the_backend_where_there_are_two(tmp_path: Path) -> None:
    results = [both(name, 10 + place, 12) for place, name in enumerate(readme.GPU_ROWS)]
    facts = {"device": "a GPU", "driver": "1", "torch": "2", "triton": "3", "copy bandwidth": "4"}
    write(tmp_path / readme.GPU, results, facts)
    text = readme.gpu_table(tmp_path / readme.GPU)
    assert "| operator, a GPU | backend | ours |" in text
    assert "| `patch_entropy page_16384 uint8` | native | 10.0 µs |" in text
    assert "| `compact_rows late_16384 bfloat16` | triton | 12.0 µs |" in text
    (tmp_path / readme.DEVICE).symlink_to(readme.report.RESULTS / readme.DEVICE)
    assert "| 10.0 µs (native) |" in readme.measured("patch_entropy", tmp_path)


def test_readme_shows_the_committed_tables(tmp_path: Path) -> None:
    assert readme.tables() in readme.README.read_text()
    results = []
    for name in readme.GPU_ROWS:
        results.append(a_result())
        results[-1].row = name
    facts = {"device": "a GPU", "driver": "1", "torch": "2", "triton": "3", "copy bandwidth": "4"}
    write(tmp_path, results, facts)
    text = readme.gpu_table(tmp_path)
    assert "| `compact_rows late_16384 bfloat16` | 10.0 µs | 50% / 100% | 100.0x | 2.0x |" in text
    page = "<!-- measured:compact_kv_ -->\nold\n<!-- /measured -->\nrest\n"
    fresh = readme.filled(page)
    assert fresh.startswith("<!-- measured:compact_kv_ -->\n| measured on |")
    assert "AMD EPYC, one thread: 17 layers photo_4096 float32 | 4.42 ms | 1.8x | 2.1x" in fresh
    assert "old" not in fresh
    assert readme.filled(fresh) == fresh
    assert json.loads((tmp_path / "operators.json").read_text())["provenance"] == facts
