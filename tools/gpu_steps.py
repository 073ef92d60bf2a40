"""Runs commands one after the other, each with a time limit, a log and a status."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARE = 0.75  # of the time there is, for "{seconds}"
TAIL_LINES = 60  # of a log, kept with the result
GRACE_S = 5  # between asking a process to end and ending it
SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s\b.*$", re.MULTILINE)

PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"
DECLINED = 77  # exit status of a program that cannot do its work on this machine
NOT_RUN_LINE, NOTE_LINE = "NOT RUN: ", "NOTE: "  # before its reason; before a remark of any step


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: short, unique.
        what: one clause for the table.
        command: what runs, in the repository's root. "{seconds}" becomes a part of the time there
            is, for a program that can do with less.
        limit_s: seconds it may take.
        environment: variables to set.
        tests: whether it is pytest, whose counts are read from the output.
        beside: runs beside the steps that follow, up to the next quiet one.
        quiet: nothing else may run meanwhile.
        reserve_s: seconds that steps before it leave to it.
    """

    name: str
    what: str
    command: tuple[str, ...]
    limit_s: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tests: bool = False
    beside: bool = False
    quiet: bool = False
    reserve_s: float = 0.0

    def filled(self, **values: str) -> Step:
        """With every "{name}" in command and environment replaced."""

        def fill(text: str) -> str:
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        command = tuple(map(fill, self.command))
        environment = {name: fill(value) for name, value in self.environment.items()}
        return dataclasses.replace(self, command=command, environment=environment)


@dataclasses.dataclass
class Result:
    """What became of a step. ``note`` says why it did not run or failed, where more is known."""

    step: Step
    status: str = NOT_RUN
    note: str = ""
    exit: int | None = None
    seconds: float = 0.0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    tail: str = ""

    def facts(self) -> dict[str, Any]:
        step = self.step
        return {
            "name": step.name,
            "command": ["python" if part == sys.executable else part for part in step.command],
            "environment": dict(step.environment),
            "limit_s": step.limit_s,
            "status": self.status,
            "note": self.note,
            "exit": self.exit,
            "seconds": round(self.seconds, 1),
            "tests": self.counts,
            "tail": self.tail if self.bad else "",
        }

    @property
    def bad(self) -> bool:
        return self.status in (FAILED, TIMED_OUT)

    @property
    def declined(self) -> bool:
        """It did not run because this machine has not got what it takes."""
        return self.status == NOT_RUN and self.exit == DECLINED


def run_step(step: Step, folder: Path, root: Path, remaining_s: float) -> Result:
    """Runs ``step`` with its output in ``folder/<name>.log``, for at most ``remaining_s``."""
    limit = min(step.limit_s, remaining_s)
    if limit <= 0:
        return Result(step, note="no time was left")
    step = step.filled(seconds=str(round(SHARE * limit)))
    log = folder / f"{step.name}.log"
    start = time.monotonic()
    with log.open("w") as output:
        try:
            code = _run(step, output, root, limit)
        except OSError as error:
            output.write(f"{error}\n")
            code = 127
    result = Result(step, exit=code, seconds=time.monotonic() - start)
    text = log.read_text(errors="replace").replace(f"{root}/", "").replace(sys.prefix, "python")
    result.tail = "\n".join(text.splitlines()[-TAIL_LINES:])
    if code is None:
        result.status, result.note = TIMED_OUT, f"more than {limit:.0f} s"
    else:
        result.status = {0: PASSED, DECLINED: NOT_RUN}.get(code, FAILED)
        mark = NOT_RUN_LINE if result.declined else NOTE_LINE
        marked = [line for line in text.splitlines() if line.startswith(mark)]
        result.note = marked[-1].removeprefix(mark) if marked else ""
    if step.tests:
        result.counts = count_tests(text)
        if result.status == PASSED and not result.counts.get("passed"):
            result.status, result.note = FAILED, "no test passed"
    return result


def _run(step: Step, output: Any, root: Path, limit: float) -> int | None:
    """Exit status, or None where the time ran out. No process of the step outlives it."""
    environment = {**os.environ, **step.environment}
    child = subprocess.Popen(
        step.command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)  # test workers belong to the group
        except ProcessLookupError:
            break
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        break


def count_tests(output: str) -> dict[str, int]:
    """Counts of pytest's last line: {"passed": 12, "skipped": 1}."""
    lines = SUMMARY.findall(output)
    if not lines:
        return {}
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])}


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one."""
    staged = path.with_name(path.name + ".new")
    staged.write_text(text)
    staged.replace(path)


def last_json(output: str) -> dict[str, Any]:
    """The object on the last line that holds one; empty if there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
    return {}
