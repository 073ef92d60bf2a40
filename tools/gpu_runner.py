"""Runs the steps of a plan: each whatever became of the others, some beside others."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.gpu_plan import NEED_NATIVE
from tools.gpu_steps import FAILED, NOT_RUN, PASSED, Result, Step, last_json, run_step
from tools.native_library import LIBRARY, ROOT, built_with, why_not_current

TOTAL_S = 1200.0  # of all steps; a machine lent for less takes --limit and --only


class Runner:
    """Runs steps one by one; knows what those before found out.

    Attributes:
        results: step -> what became of it, so far.
        beside: step -> its result to come.
    """

    def __init__(self, logs: Path, total_s: float, reserved: Mapping[str, float]) -> None:
        self.logs, self.reserved = logs, reserved
        self.end = time.monotonic() + total_s
        self.results: dict[str, Result] = {}
        self.beside: dict[str, Future[Result]] = {}

    def facts(self) -> dict[str, Any]:
        """What the first step printed."""
        return last_json(self.results["facts"].tail) if "facts" in self.results else {}

    def hindrance(self, step: Step) -> str:
        """Why there is no sense in a step; empty if there is."""
        if step.name == "facts":
            return ""
        if not self.facts().get("device"):
            return "no CUDA device was found"
        native = self.results.get("native")
        if step.name in NEED_NATIVE and native is not None and native.status != PASSED:
            return "the native library was not built"
        return ""

    def backends(self) -> str:
        """What tests must find: native too where it was built, by this check or before."""
        native = self.results.get("native")
        if native is None:
            built = not why_not_current(self.facts().get("capability", ""))
        else:
            built = native.status == PASSED
        return "native,triton" if built else "triton"

    def run(self, step: Step) -> Result:
        """Runs a step, or says why not."""
        if reason := self.hindrance(step):
            return Result(step, note=reason)
        capability = str(self.facts().get("capability", ""))
        if step.name == "native" and not why_not_current(capability):
            return Result(step, PASSED, note=f"up to date: {describe_library()}")
        if "{backends}" in step.environment.values():
            step = step.filled(backends=self.backends())
        step = step.filled(architecture=capability.replace(".", ""))
        remaining = self.end - time.monotonic() - self.reserved.get(step.name, 0.0)
        limit = f"at most {min(step.limit_s, remaining):.0f} s"
        print(f"== {step.name}: {step.what} ({limit}{', beside others' * step.beside})", flush=True)
        result = run_step(step, self.logs, ROOT, remaining)
        if step.name == "native" and result.status == PASSED:
            reason = why_not_current(capability)
            result.note = reason or describe_library()
            result.status = FAILED if reason else PASSED
        said = [f"   {step.name}: {result.status} in {result.seconds:.0f} s", counted(result)]
        print(" ".join(filter(None, [*said, result.note])))
        sys.stdout.flush()
        return result

    def collect(self, wait: bool) -> None:
        """Takes the results of the steps beside that have ended, or of all."""
        for name, future in list(self.beside.items()):
            if wait or future.done():
                self.results[name] = future.result()
                del self.beside[name]


def describe_library() -> str:
    version, capabilities = built_with(LIBRARY)
    return f"nvcc {version}, compute capability {', '.join(capabilities)}"


def counted(result: Result) -> str:
    """Tests by outcome."""
    return ", ".join(f"{number} {word}" for word, number in result.counts.items())


def run_all(
    steps: Sequence[Step],
    logs: Path,
    after: Callable[[list[Result]], None],
    total_s: float = TOTAL_S,
) -> list[Result]:
    """Every step, whatever became of the ones before it; without a GPU the first alone.

    ``after`` gets the results so far, in the order of the steps, after each.
    """
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    order = [step.name for step in steps]
    reserved = {
        step.name: sum(later.reserve_s for later in steps[number + 1 :])
        for number, step in enumerate(steps)
    }
    runner = Runner(logs, total_s, reserved)

    def so_far() -> list[Result]:
        return sorted(runner.results.values(), key=lambda result: order.index(result.step.name))

    with ThreadPoolExecutor(len(steps)) as pool:
        for step in steps:
            runner.collect(wait=step.quiet)
            if step.beside:
                runner.beside[step.name] = pool.submit(runner.run, step)
                continue
            runner.results[step.name] = runner.run(step)
            runner.collect(wait=False)
            after(so_far())
        if runner.beside:
            runner.collect(wait=True)
            after(so_far())
    return so_far()


def facts_of(results: Sequence[Result]) -> dict[str, Any]:
    """What the first step printed."""
    return last_json(results[0].tail) if results else {}


def passed(results: Sequence[Result]) -> bool:
    """Nothing failed, and what did not run cannot run on such a machine."""
    return all(not r.bad and (r.status != NOT_RUN or r.declined) for r in results)
