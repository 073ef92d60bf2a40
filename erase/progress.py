"""A progress bar on stderr, for commands that take more than a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` steps; the function it yields says what comes next."""
    said = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), said, BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        started = False

        def step(what: str) -> None:
            nonlocal started
            progress.update(task, advance=int(started), description=what)
            started = True

        yield step


def prefixed(step: Callable[[str], None], name: str) -> Callable[[str], None]:
    """``step`` with ``name`` before what it says."""
    return lambda what: step(f"{name}: {what}")
