"""The ``erase`` command: what it prints, what it draws, how it refuses."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner, Result

import erase_kernels
from erase import visualize
from erase.cli import app
from erase.demo import builtin_pictures
from erase.extras import EXTRAS
from erase.inspection import (
    inspect_image,
    load_image,
)
from erase.methods import PRESETS, EraseConfig
from erase_kernels import _native

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
ROOT = Path(__file__).parent.parent


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE)


def refused(result: Result, *words: str, code: int = 2) -> None:
    """The program ended with this code and a message, not with a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    flat = " ".join(result.output.replace("│", " ").split())
    for word in words:
        assert word in flat


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photograph(here: Path) -> Path:
    builtin_pictures()[0].image.save(here / "photo.png")
    return here / "photo.png"


# -- info, models, version ---------------------------------------------------------------------


def test_info_prints_versions_and_backends() -> None:
    result = run("info")
    assert result.exit_code == 0, result.output
    native = erase_kernels.backend_info()
    for word in (
        erase_kernels.__version__,
        torch.__version__,
        native.native_hash[:12],
        native.cpu_clone,
        native.cuda,
        "qwen2_5_vl",
    ):
        assert word in result.output
    assert "native library           │ available" in result.output


@pytest.mark.parametrize("module", ["matplotlib", "skimage", "sklearn"])
def test_info_says_how_to_install_what_is_missing(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = run("info")
    assert result.exit_code == 0
    name = {distribution for e in EXTRAS.values() for distribution, m in e.items() if m == module}
    assert f"missing {name.pop()}: pip install 'erase-kernels[demo]'" in result.output


def test_info_works_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = _native.NativeStatus(False, reason="never built, says the test")
    monkeypatch.setattr(_native, "STATUS", absent)
    result = run("info")
    assert result.exit_code == 0
    assert "native library           │ never built, says the test" in result.output
    assert "reference (never built, says the test)" in result.output
    assert "native build" not in result.output


def test_extras_are_those_of_the_distribution() -> None:
    # tomllib came with Python 3.11; these entries are one-line lists.
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.findall(r"^(\w+) = (\[.*\])$", text, flags=re.MULTILINE)
    declared = {name: ast.literal_eval(value) for name, value in lines}
    assert {extra: sorted(EXTRAS[extra]) for extra in EXTRAS} == {
        extra: sorted(declared[extra]) for extra in EXTRAS
    }


def test_version_and_module_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = f"erase-kernels {erase_kernels.__version__}\n"
    assert run("--version").output == expected
    monkeypatch.setattr(sys, "argv", ["erase", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("erase", run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == expected


def test_models_lists_every_preset() -> None:
    result = run("models")
    assert result.exit_code == 0
    for name in PRESETS:
        assert name in result.output
    assert "1 or 16" in result.output
    assert "1 or 21" in result.output
    assert "3 or 21" in result.output


# -- inspect ------------------------------------------------------------------------------------


def test_inspect_prints_and_draws(
    photograph: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[visualize.PictureRow] = []
    original = visualize.pruning_figure
    monkeypatch.setattr(visualize, "pruning_figure", lambda r: drawn.extend(r) or original(r))
    result = run("inspect", photograph, "--keep", "0.2", "-o", "map.png")
    assert result.exit_code == 0, result.output
    preset = PRESETS["Qwen2.5-VL-7B"]
    method = EraseConfig.for_model(preset.model, keep_ratio=0.2)
    seen = inspect_image(load_image(photograph), preset, method)
    rows, columns = seen.grid
    size, kept = len(seen.entropy), len(seen.kept)
    assert size >= 1280  # the published settings scale small images up
    assert kept == int(size * method.stage1_keep_ratios[0])
    for line in (
        f"{28 * columns} x {28 * rows} pixels",
        f"{size} ({columns} x {rows} cells of 28 pixels)",
        f"{seen.median:.3f} nats",
        "1.690 > 1.347 > 1.172 nats",
        "0 of 0..3 (complex: late layer)",
        f"{kept} ({kept / size:.1%})",
        f"{int(size * 0.2)} ({int(size * 0.2) / size:.1%})",
        "16 (0-based)",
        "patch_entropy: native",
        "picture: map.png",
    ):
        assert line in result.output
    (row,) = drawn
    assert torch.equal(row.selections[0].cells, seen.kept)
    assert torch.equal(row.entropy, seen.entropy)
    assert str(kept) in row.selections[0].title
    with Image.open(here / "map.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 10


def test_inspect_names_its_picture_after_the_image(photograph: Path, here: Path) -> None:
    result = run("inspect", photograph, "--model", "Qwen/Qwen2.5-VL-3B-Instruct")
    assert result.exit_code == 0, result.output
    assert "as Qwen/Qwen2.5-VL-3B-Instruct would see it" in result.output
    assert "21 (0-based)" in result.output
    assert (here / "photo_entropy.png").exists()


def test_an_animation_shows_its_first_frame(here: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black")]
    frames[0].save(here / "a.gif", save_all=True, append_images=frames[1:])
    result = run("inspect", here / "a.gif", "-o", "a.png")
    assert result.exit_code == 0, result.output
    assert np.asarray(load_image(here / "a.gif")).min() == 255


@pytest.mark.parametrize("stem", ["a$b$_{", "[bold]x[red]", "very long name " * 8])
def test_file_names_are_plain_text(stem: str, here: Path) -> None:
    name = f"{stem}.png"
    refused(run("inspect", name), f"cannot read {name}"[:60], "No such file")
    Image.new("RGB", (56, 56)).save(here / name)
    result = run("inspect", name)
    assert result.exit_code == 0, result.output
    assert f"picture: {stem}_entropy.png" in result.output
    assert (here / f"{stem}_entropy.png").exists()


# -- inspect: refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["0", "-0.1", "1.01", "nan"])
@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_keep_outside_its_range(command: str, keep: str, photograph: Path) -> None:
    image = [photograph] if command == "inspect" else ["--image", photograph]
    refused(run(command, *image, "--keep", keep), "--keep", "expected a number in (0, 1]")


def test_unknown_preset_lists_the_known(photograph: Path, here: Path) -> None:
    result = run("inspect", photograph, "--model", "LLaVA-1.5-7B")
    refused(result, "--model", "'LLaVA-1.5-7B'", "Qwen2.5-VL-7B, Qwen2.5-VL-3B")
    assert list(here.iterdir()) == [photograph]


def test_models_that_see_tiles_are_not_inspected(photograph: Path, here: Path) -> None:
    result = run("inspect", photograph, "--model", "OpenGVLab/InternVL3-8B-hf")
    refused(result, "--model", "cuts images into tiles")
    assert list(here.iterdir()) == [photograph]


@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_unreadable_images(command: str, here: Path, photograph: Path) -> None:
    def attempt(path: Path) -> Result:
        return run(command, *([path] if command == "inspect" else ["--image", path]))

    refused(attempt(here / "absent.png"), "cannot read", "No such file")
    refused(attempt(here), "cannot read", "Is a directory")
    (here / "text.png").write_text("not a picture")
    refused(attempt(here / "text.png"), "cannot read", "cannot identify image file")
    (here / "cut.png").write_bytes(photograph.read_bytes()[:3000])
    refused(attempt(here / "cut.png"), "cannot read")
    Image.new("RGB", (700, 2)).save(here / "line.png")
    refused(attempt(here / "line.png"), "700 x 2 pixels", "aspect ratio")


@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_outputs_that_cannot_be_written(command: str, here: Path, photograph: Path) -> None:
    image = [photograph] if command == "inspect" else ["--image", photograph]
    refused(run(command, *image, "-o", here / "no" / "a.png"), "--output", "no such folder")
    refused(run(command, *image, "-o", here), "--output", "is a folder")
    refused(run(command, *image, "-o", "a.docx"), "--output", "'a.docx'", "png")
    assert list(here.iterdir()) == [photograph]


def test_a_full_disk_is_reported(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", no_space)
    result = run("inspect", photograph, "-o", "a.png")
    refused(result, "cannot write a.png: No space left on device", code=1)


@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_missing_matplotlib_names_the_extra(
    command: str, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(command, *([photograph] if command == "inspect" else ["--image", photograph]))
    refused(result, "not installed", "pip install 'erase-kernels[plots]'", code=1)


@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_a_stale_library_is_reported(
    command: str, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = _native.NativeStatus(False, stale=True, reason="built from other sources")
    monkeypatch.setattr(_native, "STATUS", stale)
    result = run(command, *([photograph] if command == "inspect" else ["--image", photograph]))
    refused(result, "built from other sources", code=1)
