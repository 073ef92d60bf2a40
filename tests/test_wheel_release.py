"""The release: its workflows, its index page, and what docs/install.md says of it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import wheel_index

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
INSTALL = (ROOT / "docs" / "install.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    """With the version as a comment."""
    text = path.read_text()
    used = [step["uses"] for step in steps(yaml.safe_load(text)) if "uses" in step]
    lines = re.findall(r"uses: (\S+@[0-9a-f]{40}) # v\d+\.\d+\.\d+$", text, re.MULTILINE)
    assert used == lines
    assert used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_may_do_no_more_than_they_need(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] in ({}, {"contents": "read"})
    writing = {
        name: {scope for scope, level in job.get("permissions", {}).items() if level == "write"}
        for name, job in workflow["jobs"].items()
    }
    allowed = {"release": {"contents"}, "index": {"pages", "id-token"}}
    for name, scopes in writing.items():
        assert scopes == allowed.get(name, set()), name
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "untrusted text would reach the shell"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_commands_of_the_workflows_exist() -> None:
    every = [step for path in WORKFLOWS for step in steps(yaml.safe_load(path.read_text()))]
    commands = [step["run"] for step in every if "run" in step]
    called = set(re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE))
    assert {"test", "wheel", "wheel-check", "cuda-toolkit"} == called <= TARGETS
    assert ".ci/run" in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for module in re.findall(r"python3 -m ([\w.]+)", "\n".join(commands)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


# --- the index page ------------------------------------------------------------------------------


def tiny_wheel(folder: Path) -> Path:
    """A wheel of the project's name that holds nothing."""
    path = folder / "erase_kernels-0.1.0-py3-none-any.whl"
    info = "erase_kernels-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: erase-kernels\nVersion: 0.1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def release(wheel: Path, digest: str, draft: bool = False) -> dict[str, Any]:
    file = {"name": wheel.name, "browser_download_url": wheel.as_uri(), "digest": digest}
    notes = {"name": "notes.txt", "browser_download_url": "file:///notes.txt", "digest": digest}
    return {"draft": draft, "assets": [file, notes]}


def pip_finds(folder: Path) -> subprocess.CompletedProcess[str]:
    options = ["--isolated", "--no-cache-dir", "--no-deps", "--dest", str(folder / "found")]
    index = (folder / "simple").as_uri()
    command = [sys.executable, "-m", "pip", "download", *options, "--index-url", index]
    return subprocess.run([*command, "erase-kernels"], capture_output=True, text=True)


def test_pip_installs_from_the_index_page(tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path)
    digest = "sha256:" + hashlib.sha256(wheel.read_bytes()).hexdigest()
    pages = [[release(wheel, digest)], [release(wheel, digest, draft=True)]]
    assert wheel_index.write_index(pages, tmp_path) == 1
    done = pip_finds(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found" / wheel.name).read_bytes() == wheel.read_bytes()


def test_pip_refuses_another_file_in_its_place(tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path)
    wheel_index.write_index([release(wheel, "sha256:" + "0" * 64)], tmp_path)
    done = pip_finds(tmp_path)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_file_without_a_hash_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no SHA-256"):
        wheel_index.write_index([release(tiny_wheel(tmp_path), "")], tmp_path)


def test_the_index_page_names_the_projects_pythons() -> None:
    assert (
        f'requires-python = "{wheel_index.REQUIRES_PYTHON}"'
        in (ROOT / "pyproject.toml").read_text()
    )


# --- docs/install.md -----------------------------------------------------------------------------


def test_messages_in_the_guide_are_those_of_the_code() -> None:
    """Each quoted message stands in a source file, but for those of pip and the loader."""
    table = INSTALL.split("## When it does not load")[1]
    quoted = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert len(quoted) > 15
    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*.h")]
    sources += (ROOT / "erase_kernels").glob("*.py")
    known = "\n".join(path.read_text() for path in sources)
    known = re.sub(r'"\s*\n\s*f?"', "", known)  # string literals that go on in the next line
    known += "the library has no {device.type} kernels"
    foreign = ("supported wheel", "undefined symbol", "torch_", "GLIBC_", "not found")
    for message in (m for cell in quoted for m in re.findall(r"`([^`]+)`", cell)):
        if not any(part in message for part in foreign):
            assert re.search(pattern(message), known), message


def pattern(message: str) -> str:
    """The message as its source has it: with names in braces for what is filled in."""
    words = re.escape(message).replace("cuda\\ kernels", r"(cuda|\{device\.type\})\ kernels")
    return re.sub(r"(13|13\\\.0|3\\\.6)(?=\D|$)", r"(\1|\\{[^}]*\\}|[\\w.]+)", words)


def test_commands_of_the_guide_exist() -> None:
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", INSTALL, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE)) <= TARGETS
    assert "python -m erase_kernels" in commands
    done = subprocess.run(
        [sys.executable, "-m", "erase_kernels"], capture_output=True, text=True, cwd=ROOT
    )
    rows = {re.split(r"\s{2,}", line)[0] for line in done.stdout.splitlines()}
    assert {"native library", "CUDA tensors"} <= rows


def test_the_guide_names_the_build_switches_and_architectures() -> None:
    setup, cmake = ((ROOT / name).read_text() for name in ("setup.py", "CMakeLists.txt"))
    for name in re.findall(r'"(ERASE_KERNELS_\w+)"', setup):
        assert f"`{name}`" in INSTALL, name
    (architectures,) = re.findall(r'set\(ERASE_KERNELS_CUDA_ARCHITECTURES "(.*?)"', cmake)
    assert f"`{architectures}`" in INSTALL
