"""Collects what the test matrix found, and compares it with docs/support.md when it was complete.

Reports of all processes come together here, in the one that was started.
"""

from __future__ import annotations

from typing import Any

import pytest

PROPERTY = "support"
"""Name of the property in which a test reports ``(kind, family, column, content)``."""
WRITE_OPTION = "--write-support"
COMMAND = f"pytest tests/hf/test_matrix.py {WRITE_OPTION}"
Cells = dict[tuple[str, str, str], str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        WRITE_OPTION,
        action="store_true",
        help="write docs/support.md and the README's rows from what the test matrix finds",
    )


def register(config: pytest.Config) -> None:
    """Not in the processes that xdist starts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SupportPlugin(config.getoption(WRITE_OPTION)))


class SupportPlugin:
    """One run of the tests."""

    def __init__(self, write: bool) -> None:
        self.cells: Cells = {}
        self.failed = False
        self.said = ""
        self._write = write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A property counts only where its test passed."""
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name == PROPERTY:
                    kind, family, column, content = value
                    self.cells[kind, family, column] = content

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.finish()
        if self.failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def finish(self) -> None:
        """Compare, or write; nothing where the matrix did not run or not all of it passed."""
        if not self.cells:
            return
        from tests import support_page  # needs transformers

        missing = support_page.expected() - self.cells.keys()
        if missing:
            self.failed = self._write
            some = ", ".join(map(" ".join, sorted(missing)[:3]))
            self.said = f"docs/support.md: not compared, {len(missing)} cells are missing: {some}"
        elif self._write:
            support_page.write(self.cells)
            self.said = "docs/support.md: written"
        else:
            stale = support_page.differences(self.cells)
            self.failed = bool(stale)
            self.said = f"{', '.join(stale)}: not what the tests found; run `{COMMAND}`"
            self.said = self.said if stale else "docs/support.md: as the tests found"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.said:
            colour = {"red": True} if self.failed else {}
            terminalreporter.write_line(self.said, **colour)
