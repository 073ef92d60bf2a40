"""Times decode steps of a stock model and of one with an open session, step by step in turn.

    python -m bench.decode [--steps 400] [--no-write]

Both caches hold equally many slots, so the difference is what the session's hooks cost. Times are
those that the one computing thread spent, without what the machine did for others meanwhile. The
model is the demo's: 28 layers, random weights. Before anything is timed, a session that prunes
nothing must give the stock model's logits bit for bit, in the prefill and in decode steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import StaticCache

import erase
from bench import machine, report
from erase.demo import builtin_pictures
from erase.demo.model import build_model
from erase.demo.run import PRESET, DemoSettings, prompt_inputs
from erase.demo_assets import load_processor

RESULTS = machine.ROOT / "bench" / "results"
SEED = 0
TOKEN = 300  # fed at every step
WARMUP = 20
BUDGET_MS = 0.2  # per step at 28 layers
CHECKED_STEPS = 3
HEADINGS = ("cache", "slots", "stock ms", "with a session ms", "added ms", "quartiles ms")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to decode."""

    name: str
    static: bool
    ragged: bool


KINDS = (
    Kind("dynamic, batch 1", static=False, ragged=False),
    Kind("dynamic, ragged batch of 2", static=False, ragged=True),
    Kind("static, batch 1", static=True, ragged=False),
    Kind("static, ragged batch of 2", static=True, ragged=True),
)


@dataclasses.dataclass(frozen=True)
class DecodeResult:
    """Milliseconds: medians of both sides, and median and quartiles of the pairwise differences."""

    kind: str
    slots: int
    stock: float
    session: float
    added: float
    quartiles: tuple[float, float]


class Decoder:
    """A model with a filled cache; every call of ``step`` feeds one token."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], cache: Any) -> None:
        self.model = model
        self.mask = inputs["attention_mask"]
        self.cache = model(**inputs, past_key_values=cache, logits_to_keep=1).past_key_values
        self.deltas = getattr(model.model, "rope_deltas", None)
        if self.deltas is None or "pixel_values" not in inputs:
            self.deltas = torch.zeros_like(self.mask[:, :1])

    def prepare(self) -> Callable[[], Tensor]:
        """The next step, ready to run: only the forward is timed."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        position = self.mask.sum(-1, keepdim=True) - 1 + self.deltas
        inputs = {
            "input_ids": torch.full_like(self.mask[:, :1], TOKEN),
            "attention_mask": self.mask if len(self.mask) > 1 else None,
            "position_ids": position[None].expand(3, -1, -1),
            "past_key_values": self.cache,
        }
        return lambda: self.model(**inputs).logits


def pictured(kind: Kind, settings: DemoSettings) -> dict[str, Tensor]:
    """A prompt with the first picture, beside it a row of text where the batch is ragged."""
    processor = load_processor(settings.image_processor())
    inputs = dict(prompt_inputs(processor, builtin_pictures()[0]))
    if kind.ragged:
        length = inputs["input_ids"].shape[1]
        text = torch.full_like(inputs["input_ids"], TOKEN)
        valid = (torch.arange(length) >= length - 20).to(inputs["attention_mask"].dtype)[None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], text])
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], valid])
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(kinds)])
    return inputs


def worded(kind: Kind, slots: int) -> dict[str, Tensor]:
    """A text prompt that fills as many slots."""
    rows = 2 if kind.ragged else 1
    mask = torch.ones(rows, slots, dtype=torch.long)
    mask[1:, :-20] = 0
    return {"input_ids": torch.full((rows, slots), TOKEN), "attention_mask": mask}


def new_cache(kind: Kind, model: Any, room: int) -> Any:
    if not kind.static:
        return None
    return StaticCache(config=model.config.get_text_config(), max_cache_len=room)


def method_for(model: Any, **fields: Any) -> erase.EraseConfig:
    return erase.EraseConfig.for_model(model, transfer_from=PRESET, **fields)


def check_identity(model: Any, kind: Kind, settings: DemoSettings) -> None:
    """AssertionError unless pruning nothing changes nothing."""
    inputs = pictured(kind, settings)
    room = inputs["input_ids"].shape[1] + CHECKED_STEPS

    def logits() -> list[Tensor]:
        decoder = Decoder(model, inputs, new_cache(kind, model, room))
        return [decoder.prepare()() for _ in range(CHECKED_STEPS)]

    stock = logits()
    processor = load_processor(settings.image_processor())
    with erase.prune(model, method_for(model, keep_ratio=1.0), processor=processor):
        same = all(torch.equal(a, b) for a, b in zip(logits(), stock, strict=True))
    if not same:
        raise AssertionError(f"{kind.name}: a session that prunes nothing changed the logits")


def measure(
    kind: Kind, models: tuple[Any, Any], settings: DemoSettings, steps: int
) -> DecodeResult:
    """Steps of both sides in turn; the second model has the session."""
    stock, hooked = models
    inputs = pictured(kind, settings)
    processor = load_processor(settings.image_processor())
    method = method_for(hooked, keep_ratio=settings.keep)
    room = inputs["input_ids"].shape[1] + WARMUP + steps
    with erase.prune(hooked, method, processor=processor) as session:
        pruned = Decoder(hooked, inputs, new_cache(kind, hooked, room))
        lengths = session.report.kv_lengths if session.report else []
        slots = max(n[0] if isinstance(n, list) else n for n in lengths)
        plain = Decoder(stock, worded(kind, slots), new_cache(kind, stock, room))
        times: tuple[list[float], list[float]] = ([], [])
        for step in range(WARMUP + steps):
            for decoder, mine in zip((plain, pruned), times, strict=True):
                run = decoder.prepare()
                start = time.thread_time()
                run()
                if step >= WARMUP:
                    mine.append(1e3 * (time.thread_time() - start))
    added = [b - a for a, b in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    sides = [statistics.median(side) for side in times]
    return DecodeResult(kind.name, slots, *sides, added=middle, quartiles=(low, high))


def cells(result: DecodeResult) -> list[str]:
    """One line of the table."""
    low, high = result.quartiles
    return [
        result.kind,
        str(result.slots),
        f"{result.stock:.2f}",
        f"{result.session:.2f}",
        f"{result.added:+.3f}",
        f"{low:+.3f} .. {high:+.3f}",
    ]


def markdown(results: list[DecodeResult], facts: dict[str, Any]) -> str:
    """The committed page."""
    rows = [cells(result) for result in results]
    return report.page("Decode steps, stock and with an open session", facts, HEADINGS, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="timed steps of each side")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # what hooks cost is one thread's time
    settings = DemoSettings(min_tokens=60, max_tokens=100)
    models = tuple(build_model(SEED, torch.device("cpu")) for _ in range(2))
    with torch.no_grad():
        for kind in KINDS:
            check_identity(models[1], kind, settings)
        results = [measure(kind, models, settings, arguments.steps) for kind in KINDS]
    facts = machine.provenance("cpu", shlex.join(["python", "-m", "bench.decode", *sys.argv[1:]]))
    text_config = models[0].config.text_config
    facts |= {
        "model": f"Qwen2.5-VL, {text_config.num_hidden_layers} text layers, "
        f"hidden size {text_config.hidden_size}, random weights, fp32",
        "keep_ratio": settings.keep,
        "threads": 1,
        "steps": arguments.steps,
        "budget": f"{BUDGET_MS} ms added per step",
    }
    text = markdown(results, facts)
    Console(width=None if sys.stdout.isatty() else 200).print(text, markup=False)
    over = [result.kind for result in results if result.added > BUDGET_MS]
    if over:
        print(f"over the budget of {BUDGET_MS} ms: {', '.join(over)}", file=sys.stderr)
    if not arguments.no_write:
        folder: Path = RESULTS / report.directory_name(str(facts["device"]))
        data = {"provenance": facts, "results": [dataclasses.asdict(r) for r in results]}
        report.write_atomically(
            folder, {"decode.json": json.dumps(data, indent=1) + "\n", "decode.md": text}
        )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
