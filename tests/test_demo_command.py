"""``erase demo``: what it prints and draws, where it runs, what it refuses."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import erase_kernels
from erase import cli
from erase.demo import DemoSettings, builtin_pictures
from erase.demo.operators import OPERATORS
from tests.test_demo import NEW_TOKENS, SMALL, result


def run(*arguments: object) -> Result:
    wide = {"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(cli.app, ["demo", *map(str, arguments)], env=wide)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command at a resolution that tests can bear, in an empty folder."""
    monkeypatch.setattr(cli, "DemoSettings", functools.partial(DemoSettings, **SMALL))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_demo_prints_both_pictures_and_draws(small: Path) -> None:
    shown = run("--max-new-tokens", NEW_TOKENS, "-o", "kept.png")
    assert shown.exit_code == 0, shown.output
    for index, name in enumerate(("photograph", "scanned page")):
        expected = result(index)
        row = expected.report.rows[0]
        size, kept, final = row.visual_tokens, len(row.images[0].kept), len(row.kept)
        assert f"{name}: " in shown.output
        for line in (
            f"{size} visual + {expected.prompt_tokens - size} text tokens",
            f"{row.images[0].median:.3f} nats",
            f"{kept} ({kept / size:.1%})",
            f"{final} ({final / size:.1%})",
            f"{row.layer} (0-based)",
            f"{expected.pruned.kv_bytes[0] / 2**20:.2f} MiB",
            f"{expected.pruned.kv_bytes[1] / 2**20:.2f} MiB",
            " ".join(map(str, expected.unpruned.tokens)),
            " ".join(map(str, expected.pruned.tokens)),
        ):
            assert line in shown.output
    for operator in OPERATORS:
        assert operator in shown.output
    plain = " ".join(shown.output.split())
    assert "weights are random: they make no sense of the picture" in plain
    assert "picture: kept.png" in plain
    with Image.open(small / "kept.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2000
        assert np.asarray(picture.convert("L")).std() > 10


def test_demo_takes_ones_own_picture_without_the_demo_extra(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin_pictures()[0].image.save(small / "[my $x$].jpg")
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    shown = run("--image", "[my $x$].jpg", "--max-new-tokens", 1, "--keep", 1, "--seed", 3)
    assert shown.exit_code == 0, shown.output
    assert "[my $x$].jpg: " in shown.output
    assert "stage 2 had nothing to drop" in shown.output
    assert "photograph" not in shown.output
    assert (small / "erase_demo.png").exists()
    shown = run()
    assert shown.exit_code == 1
    flat = " ".join(shown.output.split())
    assert "scikit-image, scikit-learn, not installed" in flat
    assert "pip install 'erase-kernels[demo]'" in flat


def test_demo_refuses_cuda_where_there_is_none(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = run("--device", "cuda")
    assert shown.exit_code == 2
    assert "torch sees no CUDA device here" in " ".join(shown.output.split())


@pytest.mark.parametrize("runs_on_cuda", [True, False])
def test_device_follows_the_operators(
    runs_on_cuda: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a CUDA device in sight, auto takes it only where every operator runs on it."""

    def choose(operator: str, device: torch.device) -> str:
        if device.type == "cuda" and operator == "compact_rows" and not runs_on_cuda:
            raise RuntimeError("compact_rows: no kernel, says the test")
        return "native"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(erase_kernels, "choose_backend", choose)
    assert cli._place(cli.Device.cpu).type == "cpu"
    assert cli._place(cli.Device.auto).type == ("cuda" if runs_on_cuda else "cpu")
    if runs_on_cuda:
        assert cli._place(cli.Device.cuda).type == "cuda"
        return
    assert "running on the CPU: compact_rows: no kernel" in capsys.readouterr().err
    with pytest.raises(typer.BadParameter, match="no kernel, says the test"):
        cli._place(cli.Device.cuda)


@pytest.mark.parametrize("option", [("--max-new-tokens", 0), ("--seed", -1), ("--device", "tpu")])
def test_demo_refuses_values_outside_their_range(option: tuple[str, object]) -> None:
    shown = run(*option)
    assert shown.exit_code == 2
    assert option[0] in shown.output
