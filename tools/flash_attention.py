"""Runs the integration's flash attention tests where a flash attention package is installed."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from tools.gpu_steps import DECLINED, NOT_RUN_LINE
from tools.native_library import ROOT

PACKAGES = ("flash-attn", "flash-attn-3", "flash-attn-4")
"""Distributions; transformers calls what they bring flash_attention_2, _3 and _4."""
TESTS = ("tests/hf/test_flash.py", "tests/hf/test_flash_packages.py")


def installed() -> dict[str, str]:
    """Versions of the packages that are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    found = installed()
    if not found:
        print(f"{NOT_RUN_LINE}flash-attn is not installed")
        return DECLINED
    print("with", ", ".join(f"{package} {version}" for package, version in found.items()))
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
