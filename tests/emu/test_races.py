"""No two threads race: the kernels in a build that watches every access (tests/emu/races.h)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.emu.build import ROOT, SANITIZE_SWITCH
from tests.emu.probe import MISTAKES

SEEN = {
    "plain sum": "a race: (writes|.*read.*) of threads",
    "plain sum of blocks": "a race: .* of different blocks",
    "lanes": "a race: .*read.* of threads",
    "half a warp": "a race: .*read.* of threads",
    "atomic and plain": "a race: .* of threads",
    "two values": "a race: writes of threads",
    "one value": "fine",
    "no race": "fine",
}
MAKE_MISTAKES = f"""
import torch
from tests.emu.probe import call, order
for name, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)):
    for number in {[MISTAKES.index(name) for name in SEEN]}:
        with order(name, seed):
            try:
                call("mistake", torch.zeros(64).int(), torch.zeros(1024).int(), number, 0)
                print("fine")
            except RuntimeError as error:
                print(error)
"""


def run(*arguments: str) -> str:
    environment = {**os.environ, SANITIZE_SWITCH: "races", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]  # no worker of anybody
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_races_are_seen() -> None:
    """In every order, with the lines; also those that change no result here."""
    said = run("-c", MAKE_MISTAKES).splitlines()
    assert len(said) == 4 * len(SEEN)
    for (name, words), line in zip([*SEEN.items()] * 4, said, strict=True):
        assert re.search(words, line), (name, line)
        if words != "fine":
            assert "mistakes.cpp:" in line, line


def test_no_operator_races() -> None:
    """With all that the emulated operators are tested with, but torch's own checks."""
    names = "emulated and not (compile or opcheck or every_color or every_patch_size)"
    said = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/device", "-k", names)
    assert re.search(r"\d\d passed", said), said  # not that nothing ran
