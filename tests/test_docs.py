"""What the documents say is there, is there; and the sizes they promise are kept."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import erase_kernels

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
OPERATORS = [
    "compact_kv_",
    "compact_rows",
    "complexity_plan",
    "patch_entropy",
    "patch_entropy_from_pixels",
    "segmented_topk",
    "text_to_vision_scores",
]
SOURCES = [
    path
    for folder in ("erase", "erase_kernels", "bench", "tests", "tools", "csrc")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50  # of the body, without the docstring
LONGER = "Longer than most:"  # in the docstring of a function that cannot be cut, with the reason
MAX_LONGER_LINES = 60


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_documented(name: str) -> None:
    """Arguments, result, errors and source; a shape or unit for what goes in and out."""
    function = getattr(erase_kernels, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "Source:"):
        assert section in text, f"{name} says nothing under {section}"
    arguments = text.split("Args:")[1].split("Returns:")[0]
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ *{argument}:", arguments, re.MULTILINE), f"{name}: {argument}"


def test_every_public_name_has_a_docstring() -> None:
    for name in erase_kernels.__all__:
        assert inspect.getdoc(getattr(erase_kernels, name)), name


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", GUIDE, re.MULTILINE))
    assert {"demo", "test", "test-min", "mutants", "bench", "lint", "wheel"} <= named <= targets
    called = set(re.findall(r"^ *step ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert {"test", "lint", "mutants"} <= called <= targets


def test_paths_in_the_guide_exist() -> None:
    for quoted in re.findall(r"`([\w.-]+/[\w./-]*)`", GUIDE):
        if (
            "_x." in quoted
            or "<" in quoted
            or quoted.startswith(("dist/", "torch/", "bench/results", ".venv/"))
        ):
            continue  # made by a command, another project's, or not yet there
        assert (ROOT / quoted).exists() or (ROOT / "erase" / quoted).exists(), quoted


def test_environment_variables_are_the_documented_ones() -> None:
    """Names in the table are read somewhere, and nothing else is."""
    section = GUIDE.split("### Environment variables")[1].split("\n## ")[0]
    table = set(re.findall(r"ERASE_[A-Z_]+", section))
    read = set()
    for path in [
        ROOT / "setup.py",
        ROOT / "tests" / "conftest.py",
        ROOT / "tests" / "device" / "support.py",
        *(ROOT / "tests" / "emu").glob("*.py"),
        *(p for p in SOURCES if "tests" not in p.parts),
    ]:
        read |= set(re.findall(r"""["'](ERASE_[A-Z_]+)["']""", path.read_text()))
    assert read == table


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
            inner = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
            lines = node.end_lineno - (start or node.lineno)
            lines -= sum((n.end_lineno or n.lineno) - n.lineno for n in inner)
            allowed = MAX_FUNCTION_LINES
            if LONGER in (ast.get_docstring(node) or ""):
                allowed = MAX_LONGER_LINES
            assert lines < allowed, f"{node.name} has {lines} lines"
