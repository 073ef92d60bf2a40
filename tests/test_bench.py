"""The benchmarks' peers agree with ours on small shapes, and their report is right."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from bench import report, rows
from bench.memory import peak_extra
from bench.report import Result, RowTiming, Timing
from bench.rows import IMPLEMENTATIONS, OURS, PLAIN, PUBLISHED

SMALL = {
    "chw": lambda: rows._entropy({"height": 84, "width": 56, "patch_size": 28}, False),
    "hwc": lambda: rows._entropy({"height": 84, "width": 56, "patch_size": 28}, True),
    "pixels": lambda: rows._pixel_entropy({"height": 84, "width": 56}),
    "selection": lambda: rows._selection({"images": 3, "cells": 200, "ratio": 0.15}),
    "scores": lambda: rows._scores(
        {"heads": 6, "key_heads": 2, "depth": 8, "keys": 90, "rows": 7}, torch.float32
    ),
    "compact_kv": lambda: rows._compact_kv(
        {"layers": 2, "key_heads": 2, "keys": 50, "depth": 8, "ratio": 0.4}, torch.bfloat16
    ),
    "compact_rows": lambda: rows._compact_rows(
        {"keys": 50, "hidden": 16, "depth": 8, "ratio": 0.4}, torch.float32
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_all_implementations_of_a_row_agree(name: str) -> None:
    prepared = SMALL[name]()
    prepared.verify()
    assert tuple(prepared.run) == IMPLEMENTATIONS
    assert prepared.bytes_moved > 0


def test_a_wrong_peer_is_noticed() -> None:
    prepared = SMALL["scores"]()
    right = prepared.run[PLAIN]
    prepared.run[PLAIN] = lambda: right() * 1.001
    with pytest.raises(AssertionError, match="scores are off by"):
        prepared.verify()


def test_row_names_are_unique_and_targets_are_the_agreed_ones() -> None:
    table = {row.name: row for row in rows.all_rows()}
    assert len(table) == len(rows.all_rows())
    entropy = table["patch_entropy 1792x1792 HWC"]
    assert entropy.targets == {PUBLISHED: 20.0, PLAIN: 6.0}
    scores = table["text_to_vision_scores photo_4096 fp32"]
    assert (scores.targets, scores.memory_target) == ({PUBLISHED: 3.0, PLAIN: 1.0}, 0.10)


def result(ours: float, published: float, plain: float, memory: int = 5) -> Result:
    seconds = {
        name: Timing(value, value * 0.9, value * 1.2, 9)
        for name, value in zip(IMPLEMENTATIONS, (ours, published, plain), strict=True)
    }
    extra = {OURS: memory, PUBLISHED: 1000, PLAIN: 100}
    return Result("r", 1, seconds, extra, 0.5, "copy bandwidth", {PUBLISHED: 20.0}, 0.1, PLAIN)


def test_ratios_and_targets() -> None:
    good = result(1.0, 20.0, 1.0)
    assert good.ratio(PUBLISHED) == 20.0
    assert good.ratio_range(PUBLISHED) == (20.0 * 0.9 / 1.2, 20.0 * 1.2 / 0.9)
    assert good.missed() == []
    assert result(1.0, 19.0, 1.0).missed() == ["19.00x published, wanted 20x"]
    assert result(1.0, 20.0, 0.9).missed() == ["0.90x plain torch, wanted 1x"]
    assert result(1.0, 20.0, 1.0, memory=11).missed() == [
        "11.0% of the memory of plain torch, wanted 10%"
    ]


def test_floor_is_the_larger_bound() -> None:
    timing = RowTiming({}, bytes_moved=100, increments=1000)
    assert report.floor_of(timing, 10.0, 1000.0, 1) == (10.0, "copy bandwidth")
    assert report.floor_of(timing, 1000.0, 100.0, 2) == (5.0, "one increment per cycle")


def test_results_are_written_with_provenance(tmp_path) -> None:
    folder = tmp_path / report.directory_name("AMD EPYC (tm) 9B45")
    assert folder.name == "amd-epyc-tm-9b45"
    facts = {"device": "a CPU", "revision": "abc", "command": "python -m bench"}
    paths = report.write(folder, [result(1.0, 20.0, 2.0)], facts)
    assert sorted(x.name for x in folder.iterdir()) == ["operators.json", "operators.md"]
    data = json.loads(paths[0].read_text())
    assert data["provenance"] == facts
    assert data["results"] == [dataclasses.asdict(result(1.0, 20.0, 2.0))]
    text = paths[1].read_text()
    assert "- command: python -m bench" in text
    assert "20.00x" in text
    console = Console(record=True, width=200, quiet=True)
    report.show([result(1.0, 2.0, 2.0)], console)


def test_peak_extra_memory_sees_what_a_call_allocates() -> None:
    size = 64 << 20
    assert peak_extra(lambda: torch.ones(size, dtype=torch.uint8)) == pytest.approx(size, rel=0.1)
    assert peak_extra(lambda: None) < size // 100
