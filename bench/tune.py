"""Finds the settings of each Triton kernel on this GPU: bench/tuning/*.json says what to try.

    python -m bench.tune [--kernel NAME ...] [--budget SECONDS] [--write] [--out DIR]
    python -m bench.tune --apply FILE

A file of bench/tuning maps shape classes to a case and a grid of settings. Every combination runs
through the public operator: its result must be that of the committed settings, which themselves
must be right, and only then is it timed. ``--write`` puts winners among the committed settings of
this architecture; ``--out`` leaves tuning.json with every timing in a folder, and ``--apply`` takes
the winners from such a file, on any machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.device import make_copies, release, said
from bench.device_rows import find_case, make_problem
from bench.problem import Problem
from bench.report import write_atomically
from bench.timing import CudaTimer, Timer, measure
from erase_kernels.testing import Case, assert_matches, cases
from erase_kernels.triton_kernels import _launch

TUNING = machine.ROOT / "bench" / "tuning"
BUDGET_S = 45.0  # of one kernel
ROUND_BUDGET_S = 0.04
BACKEND = "triton"
LEAST_GAIN = 0.02  # a winner must be this much faster than the committed settings
SCORE_ERROR = 1e-5  # of the largest score: block sizes change the order of sums


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination of settings: seconds, or why there are none."""

    settings: dict[str, int]
    seconds: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One shape class: trials, fastest first; the committed settings and their time."""

    kernel: str
    shape_class: str
    case: str
    committed: dict[str, int]
    before: float | None
    trials: list[Trial]
    note: str = ""

    def winner(self) -> Trial | None:
        """The fastest combination, if it is worth a change."""
        timed = [trial for trial in self.trials if trial.seconds is not None]
        if not timed:
            return None
        if self.before is not None and timed[0].seconds > self.before * (1 - LEAST_GAIN):
            return None
        return timed[0]

    def line(self) -> str:
        """What the summary says."""
        before = "-" if self.before is None else f"{self.before * 1e6:.1f}"
        best = self.winner()
        failed = sum(trial.seconds is None for trial in self.trials)
        change = f"-> {best.seconds * 1e6:.1f} us {best.settings}" if best else "keep"
        text = f"{self.kernel} | {self.shape_class} | {self.case} | {before} us {change}"
        return text + (f" | {failed} failed" if failed else "") + f" {self.note}".rstrip()


def resolve(text: str, kernel: str = "") -> tuple[str, Case, torch.dtype, str]:
    """What "<operator> <case> [dtype] [variant]" means; near names of cases will do.

    Returns:
        Operator, case, dtype (pixels: float32, else bfloat16 where nothing is said), variant
        ("paged" for a kernel of that name).
    """
    operator, _, rest = text.partition(" ")
    words = rest.split() or [""]
    dtype = torch.float32 if operator == "patch_entropy_from_pixels" else torch.bfloat16
    for word in words[1:]:
        if isinstance(getattr(torch, word, None), torch.dtype):
            dtype = getattr(torch, word)
    variant = "HWC" if "HWC" in words else ""
    if kernel.endswith("_paged") or "paged" in words:
        variant = "paged"
    try:
        return operator, find_case(operator, words[0]), dtype, variant
    except KeyError:
        shared = "complexity_plan" if operator == "segmented_topk" else operator
        known = {case.name: case for case in cases(shared)}
        if not known:
            raise
        near = difflib.get_close_matches(words[0], known, n=1, cutoff=0.0)
        return operator, known[near[0]], dtype, variant


def combinations(grid: Mapping[str, list[int]]) -> list[dict[str, int]]:
    """Every combination of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def same(found: Any, expected: Any, exact: bool) -> None:
    """AssertionError unless two results agree."""
    if exact or not isinstance(expected, Tensor):
        assert_matches(found, expected)
    else:
        assert_matches(found, expected, budget=SCORE_ERROR * float(expected.abs().max()))


def tune_class(
    kernel: str, shape_class: str, entry: Mapping[str, Any], timer: Timer,
    device: torch.device, until: float, clock: Callable[[], float] = time.monotonic,
) -> Outcome:  # fmt: skip
    """Times every combination of one shape class until ``until``."""
    operator, case, dtype, variant = resolve(entry["case"], kernel)
    arch = _launch.architecture(device)
    committed = _launch.config(kernel, shape_class, arch).arguments()
    empty = Outcome(kernel, shape_class, f"{operator} {case.name}", dict(committed), None, [])
    try:
        problem = make_problem(operator, case, device, dtype, variant)
        run = partial(problem.ours, BACKEND)
        problem.verify(run, True)
        expected = run(problem.make(0))
        copies = make_copies(problem, timer.cache_bytes)
        before = measure(timer, run, copies, ROUND_BUDGET_S).median
    except Exception as error:  # the summary says what failed, and other classes go on
        return dataclasses.replace(empty, note=f"committed settings: {said(error)}")
    trials = []
    for settings in combinations(entry["grid"]):
        full = {**committed, **settings}
        if full == committed:
            trials.append(Trial(full, before))
        elif clock() > until:
            trials.append(Trial(full, None, "out of time"))
        else:
            exact = operator != "text_to_vision_scores"
            trials.append(_try(kernel, full, problem, expected, copies, timer, exact))
    trials.sort(key=lambda trial: math.inf if trial.seconds is None else trial.seconds)
    release(device)
    return dataclasses.replace(empty, before=before, trials=trials)


def _try(
    kernel: str, settings: dict[str, int], problem: Problem, expected: Any,
    copies: list[Any], timer: Timer, exact: bool,
) -> Trial:  # fmt: skip
    run = partial(problem.ours, BACKEND)
    try:
        with _launch.forced(kernel, settings):
            same(run(problem.make(0)), expected, exact)
            return Trial(settings, measure(timer, run, copies, ROUND_BUDGET_S).median)
    except Exception as error:  # too much shared memory, say; as above
        return Trial(settings, None, said(error))


def updated(text: str, outcomes: list[Outcome], arch: int) -> str:
    """A configuration file with the winners put in, one architecture per line."""
    classes = json.loads(text)
    for outcome in outcomes:
        best = outcome.winner()
        if best is not None:
            order = sorted(best.settings, key=lambda name: name not in _launch.OPTIONS)
            settings = {name: best.settings[name] for name in order}
            classes.setdefault(outcome.shape_class, {})[str(arch)] = settings
    blocks = []
    for name, by_arch in classes.items():
        ordered = sorted(by_arch.items(), key=lambda item: int(item[0]))
        lines = [f'    "{arch_}": {json.dumps(settings)}' for arch_, settings in ordered]
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", nargs="+", default=[], metavar="NAME", help="of bench/tuning")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of one kernel")
    parser.add_argument("--write", action="store_true", help="winners become committed settings")
    parser.add_argument("--out", default="", metavar="DIR", help="folder for tuning.json")
    parser.add_argument("--apply", default="", metavar="FILE", help="a tuning.json; runs nothing")
    return parser.parse_args()


def write_winners(outcomes: list[Outcome], arch: int) -> None:
    """Puts the winners among the committed settings."""
    for kernel in dict.fromkeys(outcome.kernel for outcome in outcomes):
        found = [outcome for outcome in outcomes if outcome.kernel == kernel]
        name = f"{kernel}.json"
        text = updated((_launch.CONFIGS / name).read_text(), found, arch)
        write_atomically(_launch.CONFIGS, {name: text})


def save(folder: Path, outcomes: list[Outcome], arch: int, device_name: str) -> None:
    """Writes tuning.json."""
    data = {
        "device": device_name,
        "architecture": arch,
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    write_atomically(folder, {"tuning.json": json.dumps(data, indent=1) + "\n"})


def load(path: Path) -> tuple[int, list[Outcome]]:
    """Architecture and outcomes of a file that ``save`` wrote."""
    data = json.loads(path.read_text())
    outcomes = []
    for entry in data["outcomes"]:
        trials = [Trial(**trial) for trial in entry.pop("trials")]
        outcomes.append(Outcome(trials=trials, **entry))
    return data["architecture"], outcomes


def tune_kernel(kernel: str, timer: Timer, device: torch.device, budget: float) -> list[Outcome]:
    """Every shape class of a kernel; each gets an equal part of the time that is left."""
    found = []
    end = time.monotonic() + budget
    plan = json.loads((TUNING / f"{kernel}.json").read_text())
    for i, (shape_class, entry) in enumerate(plan.items()):
        now = time.monotonic()
        until = now + (end - now) / (len(plan) - i)
        found.append(tune_class(kernel, shape_class, entry, timer, device, until))
        for trial in found[-1].trials:
            shown = trial.reason if trial.seconds is None else f"{trial.seconds * 1e6:.1f} us"
            print(f"    {shown:>10}  {trial.settings}", file=sys.stderr)
        print(found[-1].line(), file=sys.stderr, flush=True)
    return found


def main() -> int:
    arguments = parse()
    if arguments.apply:
        arch, outcomes = load(Path(arguments.apply))
        write_winners(outcomes, arch)
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    timer, arch = CudaTimer(device), _launch.architecture(device)
    device_name = torch.cuda.get_device_name(device)
    outcomes = []
    for kernel in arguments.kernel or sorted(path.stem for path in TUNING.glob("*.json")):
        outcomes += tune_kernel(kernel, timer, device, arguments.budget)
        if arguments.out:
            save(Path(arguments.out), outcomes, arch, device_name)
    if arguments.write:
        write_winners(outcomes, arch)
    print(f"{device_name}, sm_{arch}: committed -> best")
    for outcome in outcomes:
        print(outcome.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
