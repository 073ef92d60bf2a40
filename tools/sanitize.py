"""Runs the native CUDA kernels under one tool of NVIDIA's compute-sanitizer.

    python -m tools.sanitize memcheck|racecheck|initcheck

Ends with 1 if the tool reports an error, or the cases do not come to their end; with 77 where there
is no compute-sanitizer, or the machine refuses it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.gpu_steps import DECLINED, NOT_RUN_LINE, NOTE_LINE
from tools.sanitizer_cases import BEGUN, DONE

ROOT = Path(__file__).resolve().parent.parent
TOOL = "compute-sanitizer"
CASES = (sys.executable, "-m", "tools.sanitizer_cases")
FOUND = 86  # exit status that the sanitizer shall give where it reports an error
# A tensor of its own allocation: an access past its end is one past the allocation's.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
OPTIONS = {
    "memcheck": (),
    "racecheck": (),
    # What copies to the host read is not the kernels' doing.
    "initcheck": ("--check-api-memory-access", "no"),
}
# What it says where it cannot watch a program here.
REFUSALS = (
    "Device not supported",
    "not supported on this",
    "Internal Sanitizer Error",
    "Unable to find injection library",
    "Failed to initialize",
    "Failed to inject",
    "driver version is insufficient",
)
SUMMARY = re.compile(r"(?<!RACECHECK )ERROR SUMMARY: (\d+) error")
RACES = re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)")

PASSED, FAILED = 0, 1


def find_tool() -> str | None:
    """On PATH, or in the CUDA toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = (TOOL, f"{home}/bin/{TOOL}", f"{home}/compute-sanitizer/{TOOL}")
    return next(filter(None, map(shutil.which, places)), None)


def judge(output: str, code: int) -> tuple[int, str]:
    """Exit status and one line, from the output and the exit status of a sanitizer."""
    lines = output.splitlines()
    summaries = [int(count) for count in SUMMARY.findall(output)]
    races = [(int(errors), int(warnings)) for errors, warnings in RACES.findall(output)]
    errors = sum(summaries) + sum(found for found, _ in races)
    warnings = sum(found for _, found in races)
    refusal = next((line for line in lines if any(text in line for text in REFUSALS)), "")
    begun = BEGUN in output
    if refusal and (not begun or (REFUSALS[0] in refusal and not errors)):
        return DECLINED, f"{TOOL}: {refusal.strip('= ')}"
    if errors:
        return FAILED, f"{errors} errors, {warnings} warnings"
    done = next((line for line in lines if line.startswith(DONE)), "")
    if not done or code not in (PASSED, FOUND):
        return FAILED, f"the cases did not come to their end: exit status {code}"
    if code == FOUND:
        return FAILED, f"exit status {FOUND} without an error, {warnings} warnings"
    if not summaries and not races:
        return FAILED, f"{TOOL} printed no summary"
    return PASSED, f"0 errors, {warnings} warnings{done.removeprefix(DONE)}"


def known_options(tool: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """``options``, or none where this version's help does not name them."""
    if not options:
        return options
    text = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    return options if options[0].lstrip("-") in text else ()


def run(tool: str, name: str) -> tuple[int, str]:
    """Runs the cases under a tool, showing its output; see `judge`."""
    command = [tool, "--tool", name, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    command += [*known_options(tool, OPTIONS[name]), *CASES]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return judge("".join(lines), child.wait())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=OPTIONS)
    arguments = parser.parse_args()
    tool = find_tool()
    status, said = run(tool, arguments.tool) if tool else (DECLINED, f"no {TOOL} was found")
    print(f"{NOT_RUN_LINE if status == DECLINED else NOTE_LINE}{said}")
    return status


if __name__ == "__main__":
    sys.exit(main())
