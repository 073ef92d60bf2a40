"""Writes the index page that pip installs from (PEP 503), out of a project's list of releases.

Usage: python -m tools.wheel_index RELEASES.json FOLDER
RELEASES.json is what GitHub answers for ``repos/OWNER/NAME/releases``, in pages or not. The files
stay where they are attached; the page links to them with their SHA-256.
"""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

PROJECT = "erase-kernels"
FILES = (".whl", ".tar.gz")
REQUIRES_PYTHON = ">=3.10"  # as pyproject.toml; a test compares them
PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n{links}\n</body></html>\n"


def published_files(answer: list[Any]) -> list[dict[str, Any]]:
    """Wheels and sdists of the releases that are not drafts."""
    releases = [r for page in answer for r in (page if isinstance(page, list) else [page])]
    files = [file for r in releases if not r["draft"] for file in r["assets"]]
    return [file for file in files if file["name"].endswith(FILES)]


def link(file: dict[str, Any]) -> str:
    """A link with the file's hash, so that pip refuses another file in its place."""
    name = html.escape(file["name"])
    kind, _, value = (file.get("digest") or "").partition(":")
    if kind != "sha256" or not value:
        raise SystemExit(f"{file['name']} has no SHA-256 in the list of releases")
    address = html.escape(f"{file['browser_download_url']}#sha256={value}")
    needs = html.escape(REQUIRES_PYTHON)
    return f'<a href="{address}" data-requires-python="{needs}">{name}</a><br>'


def write_index(answer: list[Any], folder: Path) -> int:
    """Writes ``folder/simple``; returns how many files it links to."""
    files = published_files(answer)
    project = folder / "simple" / PROJECT
    project.mkdir(parents=True, exist_ok=True)
    links = "\n".join(link(file) for file in files)
    (project / "index.html").write_text(PAGE.format(title=f"Files of {PROJECT}", links=links))
    root = f'<a href="{PROJECT}/">{PROJECT}</a>'
    (folder / "simple" / "index.html").write_text(PAGE.format(title="Projects", links=root))
    return len(files)


if __name__ == "__main__":
    count = write_index(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    print(f"{count} files")
    sys.exit(0 if count else 1)
