"""Prints, as one line of JSON, the versions and the GPU that the calling python finds."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess

import torch

PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest", "pytest-xdist", "hypothesis")
FLASH = ("flash-attn", "flash-attn-3", "flash-attn-4")
BUILDERS = ("setuptools", "cmake", "ninja")
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def nvcc() -> str:
    """Version of the CUDA compiler."""
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None:
        return "missing"
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\S+),", said)
    return found[1] if found else "unknown"


def main() -> None:
    facts: dict[str, object] = {"python": platform.python_version()}
    facts |= {package: version(package) for package in (*PACKAGES, *FLASH, *BUILDERS)}
    facts |= {"torch": str(torch.__version__), "cuda": torch.version.cuda, "nvcc": nvcc()}
    facts["device"] = None
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        driver = subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout.strip()
        facts |= {
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "driver": driver,
            "devices": torch.cuda.device_count(),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
