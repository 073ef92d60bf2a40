"""What the README shows is run: its example, its commands, its table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from bench import readme
from erase.cli import app
from erase.methods import PRESETS
from erase.methods import erase as erase_method
from tests import support_page
from tests.models import build_model
from tests.prompts import ANSWER, IMAGE_SLOT, SYSTEM, chat_processor, photo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Contents of the fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, with a tiny model of the preset's depth in place of the download."""
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) == 8
    preset = PRESETS["Qwen2.5-VL-7B"]
    asked = []

    def model(name: str) -> Any:
        asked.append(name)
        return build_model("qwen2_5_vl", num_hidden_layers=preset.num_layers)

    def processor(name: str) -> Any:
        asked.append(name)
        return chat_processor()

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", model)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", processor)
    monkeypatch.setattr(erase_method, "find_preset", lambda _: preset)
    scope = {
        "prompt": SYSTEM + IMAGE_SLOT + "What is it?" + ANSWER,
        "image": Image.fromarray(photo(5, 6)),
    }
    exec(example, scope)
    assert asked == [preset.model, preset.model]
    report = scope["session"].report
    assert len(report.rows[0].kept) == int(30 * 0.15)
    assert str(report) in capsys.readouterr().out


def test_commands_exist() -> None:
    commands = "\n".join(blocks("sh"))
    targets = set(re.findall(r"^make (\S+)", commands, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    subcommands = set(re.findall(r"^erase (\S+)", commands, flags=re.MULTILINE))
    assert {"demo", "inspect", "info"} <= subcommands
    for name in subcommands:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name


def test_table_is_the_committed_one() -> None:
    """Every figure comes from bench/results; ``python -m bench.readme`` writes the table."""
    folder = ROOT / "bench" / "results" / readme.DEVICE
    assert readme.table(folder) in README
    for name in ("operators.json", "prefill.json"):
        facts = json.loads((folder / name).read_text())["provenance"]
        assert {"device", "torch", "revision", "command", "date"} <= facts.keys()
        assert "local changes" not in facts["revision"]


def test_supported_rows_are_generated() -> None:
    """``--write-support`` of the test matrix writes them."""
    assert support_page.readme(README) == README
    assert support_page.readme(README.replace("`qwen2_5_vl`", "another")) == README
