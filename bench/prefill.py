"""Times whole prefills, unpruned and pruned, of the model and pictures that the demo shows.

    python -m bench.prefill [--runs 5] [--no-write]

Random weights, true architecture: times and bytes mean something, words do not. Before anything is
timed, ``keep_ratio=1`` must give the stock model's logits bit for bit on the first picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import erase
from bench import machine, report
from erase.demo import builtin_pictures
from erase.demo.model import build_model
from erase.demo.run import PRESET, DemoResult, DemoSettings, prompt_inputs, run_picture
from erase.demo_assets import load_processor

RESULTS = machine.ROOT / "bench" / "results"
SEED = 0
HEADINGS = (
    "picture",
    "visual tokens",
    "level, layer",
    "prefill ms",
    "language model ms",
    "KV MiB",
)


@dataclasses.dataclass(frozen=True)
class PrefillResult:
    """One picture. Times in milliseconds, medians; ``spread`` is (min, max) of the prefills."""

    picture: str
    visual_tokens: tuple[int, int, int]  # unpruned, after stage 1, after stage 2
    level: int
    layer: int | None
    prefill: tuple[float, float]  # unpruned, pruned
    spread: tuple[tuple[float, float], tuple[float, float]]
    language: tuple[float, float]  # without the vision encoder
    kv_bytes: tuple[int, int]  # after the prefill


def check_identity(model: Any, settings: DemoSettings) -> None:
    """AssertionError unless pruning nothing changes nothing."""
    processor = load_processor(settings.image_processor())
    inputs = prompt_inputs(processor, builtin_pictures()[0]).to(model.device)
    method = erase.EraseConfig.for_model(
        model, transfer_from=PRESET, keep_ratio=1.0, force_gathers=True
    )
    with torch.no_grad():
        stock = model(**inputs, logits_to_keep=1).logits
        with erase.prune(model, method, processor=processor):
            pruned = model(**inputs, logits_to_keep=1).logits
    if not torch.equal(stock, pruned):
        raise AssertionError("keep_ratio=1 changed the logits; nothing was timed")


def summarise(result: DemoResult) -> PrefillResult:
    """The figures of one picture."""
    row = result.report.rows[0]
    (image,) = row.images
    sides = (result.unpruned, result.pruned)

    def milliseconds(values: list[float]) -> float:
        return 1e3 * statistics.median(values)

    return PrefillResult(
        picture=result.picture.name,
        visual_tokens=(row.visual_tokens, len(image.kept), len(row.kept)),
        level=image.level,
        layer=row.layer,
        prefill=tuple(milliseconds(side.prefills) for side in sides),  # type: ignore[arg-type]
        spread=tuple((1e3 * min(s.prefills), 1e3 * max(s.prefills)) for s in sides),  # type: ignore[arg-type]
        language=tuple(1e3 * side.language for side in sides),  # type: ignore[arg-type]
        kv_bytes=tuple(side.kv_bytes[0] for side in sides),  # type: ignore[arg-type]
    )


def cells(result: PrefillResult) -> list[str]:
    """One line of the table: before -> after."""

    def change(pair: tuple[float, float], digits: int) -> str:
        before, after = pair
        return f"{before:.{digits}f} -> {after:.{digits}f} ({before / after:.2f}x)"

    held = (result.kv_bytes[0] / report.MIB, result.kv_bytes[1] / report.MIB)
    return [
        result.picture,
        " -> ".join(map(str, result.visual_tokens)),
        f"{result.level}, {result.layer}",
        change(result.prefill, 0),
        change(result.language, 0),
        change(held, 1),
    ]


def markdown(results: list[PrefillResult], facts: dict[str, Any]) -> str:
    """The committed page."""
    rows = [cells(result) for result in results]
    return report.page("Prefill, unpruned -> pruned", facts, HEADINGS, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="timed prefills of each side")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    settings = DemoSettings(prefill_runs=arguments.runs, max_new_tokens=2)
    model = build_model(SEED, torch.device("cpu"))
    check_identity(model, settings)
    results = [summarise(run_picture(model, p, settings)) for p in builtin_pictures()]
    facts = machine.provenance("cpu", shlex.join(["python", "-m", "bench.prefill", *sys.argv[1:]]))
    facts |= {
        "model": f"Qwen2.5-VL, {model.config.text_config.num_hidden_layers} text layers, "
        f"hidden size {model.config.text_config.hidden_size}, random weights, fp32",
        "keep_ratio": settings.keep,
        "threads": torch.get_num_threads(),
        "runs": arguments.runs,
    }
    text = markdown(results, facts)
    Console(width=None if sys.stdout.isatty() else 200).print(text, markup=False)
    if not arguments.no_write:
        folder: Path = RESULTS / report.directory_name(str(facts["device"]))
        data = {"provenance": facts, "results": [dataclasses.asdict(r) for r in results]}
        report.write_atomically(
            folder, {"prefill.json": json.dumps(data, indent=1) + "\n", "prefill.md": text}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
