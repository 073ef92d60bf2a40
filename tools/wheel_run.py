"""Commands and progress lines of ``make wheel-check``."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any


class Failed(Exception):
    """Why the wheel cannot be released."""


_start = time.monotonic()


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _start:6.1f} s] {text}", flush=True)


def run(command: list[Any], problem: str, **options: Any) -> str:
    """Output of a command that must succeed; its last lines are shown if it does not."""
    words = [str(word) for word in command]
    options = {"env": clean_environ(), **options}
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise Failed(f"{problem}\n$ {' '.join(words)}\n{tail}")
    return str(done.stdout)


def clean_environ(**more: str) -> dict[str, str]:
    """This process's environment without what could bring the checkout into another's path."""
    foreign = ("PYTHON", "ERASE_", "VIRTUAL")
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | more
