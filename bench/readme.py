"""Writes the README's table from the committed results.

    python -m bench.readme [--check]

``--check`` only tells whether the table is the one the results give.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import prefill, report
from bench.machine import ROOT

README = ROOT / "README.md"
START, END = "<!-- bench:begin -->", "<!-- bench:end -->"
DEVICE = "amd-epyc"
"""Folder of bench/results that the README shows."""
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where the table is stale")
    arguments = parser.parse_args()
    text = README.read_text()
    head, rest = text.split(START)
    _, tail = rest.split(END)
    fresh = f"{head}{START}\n{table(ROOT / 'bench' / 'results' / DEVICE)}\n{END}{tail}"
    if arguments.check:
        return int(fresh != text)
    README.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
