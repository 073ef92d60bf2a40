"""``make wheel-check``: whether dist/ holds a wheel and an sdist that can be released.

The wheel is looked at, then installed in clean environments and used from a temporary directory,
where nothing of the checkout can be imported. The sdist is built. Environments are kept between
runs; each run installs the wheel anew. No GPU is needed, and none is used.

Usage: python -m tools.wheel_check [--only NAME] [--with NAME] [--dist DIR] [--environments DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.wheel_environments import ENVIRONMENTS, ROOT, Environment, check_environment
from tools.wheel_files import check_files, check_sdist, only_one
from tools.wheel_run import Failed, say

REQUIRED = ("files", "sdist", "cpu", "cuda")


def steps(wheel: Path, sdist: Path, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every part of the check, by name."""

    def with_scratch(check: Callable[[Path, Path, Path], None]) -> Callable[[], None]:
        def scratch() -> None:
            with tempfile.TemporaryDirectory() as temporary:
                check(wheel, sdist, Path(temporary))

        return scratch

    def environment(name: str, wanted: Environment) -> Callable[[], None]:
        return lambda: check_environment(name, wanted, wheel, folder)

    yield "files", with_scratch(check_files)
    yield "sdist", with_scratch(check_sdist)
    for name, wanted in ENVIRONMENTS.items():
        yield name, environment(name, wanted)


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; 1 at the first that fails."""
    names = ["files", "sdist", *ENVIRONMENTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names, action="append", help="a partial check")
    parser.add_argument("--with", choices=names, action="append", default=[], dest="more")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "wheel-check")
    options = parser.parse_args(arguments)
    wanted = [*(options.only or REQUIRED), *options.more]
    try:
        dist = options.dist.resolve()
        files = only_one(dist, "*.whl"), only_one(dist, "*.tar.gz")
        for name, check in steps(*files, options.environments.resolve()):
            if name in wanted:
                check()
    except Failed as problem:
        say(f"FAILED: {problem}")
        return 1
    say("passed" if set(wanted) >= set(REQUIRED) else f"passed, of {', '.join(wanted)} only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
