"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in every order."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.emu.build import ROOT, sanitized_environment
from tests.emu.probe import MISTAKES

REPORT = re.compile(r"Sanitizer|runtime error:")
# What only a sanitizer notices -> what it says.
SEEN = {
    "global read": "heap-buffer-overflow",
    "static write": "global-buffer-overflow|with insufficient space",
    "behind dynamic": "heap-buffer-overflow",
    "overflow": "signed integer overflow: 2147483647 \\+ 1",
    "cast": "4e\\+09 is outside the range of representable values",
}
# Each in a process of its own, forked from one that has torch.
MAKE_MISTAKES = f"""
import os, torch
from tests.emu.probe import call
for number in {[MISTAKES.index(name) for name in SEEN]}:
    print("=== mistake", flush=True)
    child = os.fork()
    if child == 0:
        call("mistake", torch.zeros(64).int(), torch.zeros(1024).int(), number, 0)
        print("nobody noticed", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with sanitized kernels; what it says comes together."""
    environment = {**os.environ, **sanitized_environment(), "OMP_NUM_THREADS": "1"}
    for name in list(environment):
        if name.startswith("PYTEST_XDIST"):
            del environment[name]  # no worker of anybody
    command = [sys.executable, *arguments]
    pipe = subprocess.PIPE
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def pytest_passes(*arguments: str) -> None:
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout[-4000:]
    assert not REPORT.search(done.stdout), done.stdout[-4000:]
    assert re.search(r"\d\d passed", done.stdout), done.stdout  # not that nothing ran


def test_the_sanitizers_see() -> None:
    _, *said = run("-c", MAKE_MISTAKES).stdout.split("=== mistake")
    assert len(said) == len(SEEN)
    for (name, words), report in zip(SEEN.items(), said, strict=True):
        assert re.search(words, report), (name, report)
        assert "nobody noticed" not in report, name
        assert "mistakes.cpp:" in report, name  # where


def test_the_emulator_and_every_operator_in_every_order() -> None:
    names = ("blocks", "warps", "orders")
    pytest_passes(
        *(f"tests/emu/test_{name}.py" for name in names), "-k", "not behind and not forked"
    )


def test_odd_shapes_and_bad_data() -> None:
    """All that the emulated operators are tested with, but torch's own checks of operators."""
    pytest_passes("tests/device", "-k", "emulated and not (compile or opcheck or every_color)")
