"""Writes the tables of the README and of docs/operators.md from the committed results.

    python -m bench.readme [--check]

``--check`` only tells whether the tables are those that the results give. A GPU's come first, where
there are results of one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import device_report, prefill, report
from bench.accuracy import results as accuracy
from bench.accuracy import tables as accuracy_tables
from bench.machine import ROOT
from bench.problem import COMPILED
from bench.rows import PLAIN, PUBLISHED

README = ROOT / "README.md"
OPERATORS = ROOT / "docs" / "operators.md"
START, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ACCURACY_START, ACCURACY_END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
DEVICE = "amd-epyc"
"""Folder of bench/results whose CPU the README shows."""
GPU = "nvidia-h200"
"""Folder of the GPU."""
ROWS = (
    "patch_entropy 1792x1792 CHW",
    "patch_entropy 1792x1792 HWC",
    "patch_entropy_from_pixels 1792x1792 fp32",
    "text_to_vision_scores photo_4096 fp32",
    "compact_kv_ 17 layers photo_4096 float32",
)
"""Prefixes of the operators shown, in order."""


def table(folder: Path) -> str:
    """Whole prefills first, then operators, on one device."""
    facts, results = report.load_results(folder / "operators.json")
    pictures = json.loads((folder / "prefill.json").read_text())
    lines = [
        "| 85% of the visual tokens pruned, prefill of a small Qwen2.5-VL | stock | pruned | |",
        "|---|---:|---:|---:|",
    ]
    for entry in pictures["results"]:
        result = prefill.PrefillResult(**entry)
        before, after = result.prefill
        tokens = f"{result.picture}, {result.visual_tokens[0]} tokens"
        lines.append(
            f"| {tokens}: time | {before:.0f} ms | {after:.0f} ms | **{before / after:.2f}x** |"
        )
        held = [count / report.MIB for count in result.kv_bytes]
        lines.append(
            f"| {tokens}: KV cache | {held[0]:.1f} MiB | {held[1]:.1f} MiB "
            f"| **{held[0] / held[1]:.2f}x** |"
        )
    lines += [
        "",
        "| operator, one thread | ours | vs published formula | vs best plain torch |",
        "|---|---:|---:|---:|",
    ]
    for prefix in ROWS:
        (result_row,) = [r for r in results if r.threads == 1 and r.row.startswith(prefix)]
        ours = result_row.seconds[report.OURS].median * 1e3
        ratios = [f"{result_row.ratio(peer):.1f}x" for peer in report.PEERS]
        lines.append(f"| `{result_row.row}` | {ours:.2f} ms | {' | '.join(ratios)} |")
    lines += [
        "",
        f"{facts['device']}, {facts['cores']} cores, torch {facts['torch']}; random weights; "
        f"all rows, spreads and provenance in [bench/results](bench/results/{folder.name}).",
        "The published formula's temporaries are page-faulted or not, as the allocator's state has",
        "it, so ratios to it vary from run to run; plain torch is written to stay in the cache.",
    ]
    return "\n".join(lines)


GPU_ROWS = (
    "patch_entropy page_16384 uint8",
    "patch_entropy_from_pixels page_16384 float32",
    "complexity_plan + segmented_topk page_16384 float32",
    "complexity_plan + segmented_topk sixty_four_1024 float32",
    "text_to_vision_scores page_16384_64 bfloat16",
    "compact_kv_ late_16384 bfloat16",
    "compact_rows late_16384 bfloat16",
)
"""Rows of the GPU's table shown, in order; each with its fastest backend."""


def gpu_table(folder: Path) -> str:
    """The operators on one GPU; which backend is meant stands there where there are several."""
    facts, results = device_report.load_results(folder / "operators.json")
    known = {result.row: result for result in results}
    several = _several(results)
    lines = [
        f"| operator, {facts['device']} |{' backend |' * several} ours | of copy / matmul "
        "| vs published formula | vs compiled torch |",
        f"|---|{'---|' * several}---:|---:|---:|---:|",
    ]
    for name in GPU_ROWS:
        result = known[name]
        best = result.fastest()
        shares = f"{result.share(best, device_report.COPY):.0%}"
        if result.operations:
            shares += f" / {result.share(best, device_report.MULTIPLY):.0%}"
        ratios = [_ratio(result, best, peer) for peer in (PUBLISHED, COMPILED)]
        cells = [f"`{name}`", *([best] * several), _micro(result, best), shares, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, "
        f"triton {facts['triton']}; CUDA-graph replays on cold caches; copy "
        f"{facts['copy bandwidth']}; all rows, spreads and provenance in "
        f"[bench/results](bench/results/{folder.name}).",
    ]
    return "\n".join(lines)


def _several(results: Sequence[device_report.DeviceResult]) -> bool:
    """Whether more than one backend was timed."""
    return len({name for r in results for name in r.backends if name in r.seconds}) > 1


def _micro(result: device_report.DeviceResult, backend: str) -> str:
    return f"{result.seconds[backend].median * 1e6:.1f} µs"


def tables(results: Path = report.RESULTS) -> str:
    """Everything between the README's marks."""
    parts = [table(results / DEVICE)]
    if (results / GPU / "operators.json").exists():
        parts.insert(0, gpu_table(results / GPU))
    return "\n\n".join(parts)


MEASURED = re.compile(r"(<!-- measured:(.+?) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def measured(operator: str, results: Path = report.RESULTS) -> str:
    """A table of the rows that begin with ``operator``: a GPU's headline rows, one CPU thread."""
    lines: list[str] = []
    path = results / GPU / "operators.json"
    if path.exists():
        facts, on_gpu = device_report.load_results(path)
        for result in on_gpu:
            if result.row in GPU_ROWS and result.row.startswith(f"{operator} "):
                best = result.fastest()
                ratios = [_ratio(result, best, peer) for peer in (PUBLISHED, PLAIN, COMPILED)]
                time = _micro(result, best) + f" ({best})" * _several(on_gpu)
                shape = result.row.removeprefix(operator).strip()
                lines.append(f"| {facts['device']}: {shape} | {time} | {' | '.join(ratios)} |")
    facts, on_cpu = report.load_results(results / DEVICE / "operators.json")
    for row in on_cpu:
        if row.threads == 1 and row.row.startswith(f"{operator} "):
            ratios = [f"{row.ratio(peer):.1f}x" for peer in report.PEERS]
            time = f"{row.seconds[report.OURS].median * 1e3:.2f} ms"
            shape = row.row.removeprefix(operator).strip()
            lines.append(
                f"| {facts['device']}, one thread: {shape} | {time} | {' | '.join(ratios)} | - |"
            )
    head = ["| measured on | ours | vs by hand | vs best plain torch | vs compiled |"]
    return "\n".join([*head, "|---|---:|---:|---:|---:|", *lines])


def _ratio(result: device_report.DeviceResult, backend: str, peer: str) -> str:
    return f"{result.ratio(backend, peer):.1f}x" if peer in result.seconds else "not measured"


def filled(text: str) -> str:
    """A page with a fresh table between the marks of every operator."""
    return MEASURED.sub(lambda found: found[1] + measured(found[2]) + "\n" + found[3], text)


def between(text: str, start: str, end: str, fresh: str) -> str:
    """``text`` with ``fresh`` on lines of its own between two marks that it holds once."""
    head, rest = text.split(start)
    _, tail = rest.split(end)
    return f"{head}{start}\n{fresh}\n{end}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a table is stale")
    arguments = parser.parse_args()
    text = between(README.read_text(), START, END, tables())
    shown = accuracy_tables.short_table(accuracy.load())
    fresh = {
        README: between(text, ACCURACY_START, ACCURACY_END, shown),
        OPERATORS: filled(OPERATORS.read_text()),
    }
    if arguments.check:
        return int(any(page.read_text() != text for page, text in fresh.items()))
    for page, text in fresh.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
