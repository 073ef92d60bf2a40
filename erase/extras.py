"""Optional dependencies: what each extra of the distribution brings, and what is missing here."""

from __future__ import annotations

import importlib.metadata
import importlib.util

DISTRIBUTION = "erase-kernels"

EXTRAS: dict[str, dict[str, str]] = {
    "plots": {"matplotlib": "matplotlib"},
    "demo": {"matplotlib": "matplotlib", "scikit-image": "skimage", "scikit-learn": "sklearn"},
    "flash": {"flash-attn": "flash_attn"},
}
"""Extra -> its distributions and the module each is imported as."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message says how to install it."""


def install_command(extra: str) -> str:
    """The pip command that installs ``extra``."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing(extra: str) -> list[str]:
    """Distributions of ``extra`` that cannot be imported here; nothing is imported to find out."""
    return [name for name, module in EXTRAS[extra].items() if not _importable(module)]


def require(extra: str, purpose: str) -> None:
    """MissingExtraError, naming ``purpose`` and the command, unless ``extra`` is installed."""
    absent = missing(extra)
    if absent:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(absent)}, not installed here: {install_command(extra)}"
        )


def version(distribution: str) -> str:
    """Installed version of ``distribution``; a plain word where there is no metadata."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "no version recorded"


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
