"""What ``erase demo --reader`` reads, prints and draws; its model here is untrained."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import erase
from bench.accuracy.model import WEIGHTS
from erase import cli, tables
from erase.demo import (
    DemoSettings,
    Reader,
    Reading,
    builtin_pictures,
    read_picture,
    reading_pictures,
)
from erase.demo.reading import Answer
from erase.demo_assets import load_processor, load_tokenizer
from erase.inspection import image_processor
from erase.panels import demo_figure
from tests.demo_reader import KEEP, METHOD, loaded, readings, stored
from tests.hf.common import snapshot
from tests.oracle_choices import choose_image
from tests.test_demo import SMALL
from tests.test_demo_command import run

ROOT = Path(__file__).resolve().parent.parent


# -- the answers -------------------------------------------------------------------------------


def answered(index: int, pruned: bool) -> tuple[list[int], int]:
    """The tokens of a plain call with the prompt written out, and the prompt's length."""
    picture = reading_pictures()[index]
    processor = load_processor(image_processor(28 * 28, 256 * 28 * 28))
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|><|image_pad|><|vision_end|>{picture.asked}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = processor(images=[picture.image], text=[text], return_tensors="pt")
    tokenizer = load_tokenizer()
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "suppress_tokens": sorted(set(tokenizer.added_tokens_decoder) - {tokenizer.eos_token_id}),
    }
    if pruned:
        with erase.prune(loaded().model, METHOD.replace(keep_ratio=KEEP), processor=processor):
            output = loaded().model.generate(**inputs, **options)
    else:
        output = loaded().model.generate(**inputs, **options)
    length = inputs["input_ids"].shape[1]
    return output[0, length:].tolist(), length


@pytest.mark.parametrize("index", [0, 1])
def test_answers_are_those_of_plain_calls(index: int) -> None:
    shown, tokenizer = readings()[index], load_tokenizer()
    for side, pruned in ((shown.unpruned, False), (shown.pruned, True)):
        tokens, length = answered(index, pruned)
        ended = tokens[-1] == tokenizer.eos_token_id
        assert side.text == tokenizer.decode(tokens[:-1] if ended else tokens)
        assert not side.right
        text = loaded().model.config.text_config
        head = text.hidden_size // text.num_attention_heads
        slot = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4
        dropped = 256 - int(256 * KEEP) if pruned else 0
        assert side.kv_bytes == slot * (length - dropped)
    assert shown.report.kv_bytes.after_prefill == shown.pruned.kv_bytes


@pytest.mark.parametrize(("index", "layer"), [(0, 1), (1, 4)])
def test_kept_cells_are_the_reports_and_the_oracles(index: int, layer: int) -> None:
    shown = readings()[index]
    picture = reading_pictures()[index]
    levels = torch.frombuffer(bytearray(picture.image.tobytes()), dtype=torch.uint8)
    assert torch.equal(shown.image, levels.reshape(448, 448, 3).permute(2, 0, 1))
    chosen = choose_image(shown.method, shown.image.numpy())
    row = shown.report.rows[0]
    assert row.layer == layer
    assert row.visual_tokens == 256
    assert row.images[0].kept.tolist() == chosen.kept
    final = shown.final_cells.tolist()
    assert len(final) == 38
    assert set(final) < set(chosen.kept)
    assert set(shown.report.backends.values()) == {"native"}


def test_the_reader_is_left_as_it_was_and_keeps_all_if_told_to() -> None:
    before = snapshot(loaded().model)
    everything = Reader(loaded().model, loaded().method.replace(keep_ratio=1.0))
    shown = read_picture(everything, reading_pictures()[0])
    assert snapshot(loaded().model) == before
    assert shown.pruned == shown.unpruned
    assert len(shown.final_cells) == 256
    console = Console(record=True, width=160)
    console.print(tables.reading_table([shown]))
    assert re.search(r"256 -> 256 -> 256 *│ - *│", console.export_text())
    assert "stage 2 had nothing to drop" in demo_figure([], [shown]).axes[3].get_title()


@pytest.mark.parametrize(
    ("said", "ends", "right"),
    [("37", True, True), ("37", False, False), ("3", True, False), ("", True, False)],
)
def test_right_is_what_is_printed_and_nothing_else(
    said: str, ends: bool, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of a model that says what it is told to."""
    tokenizer, generate = load_tokenizer(), loaded().model.generate
    tokens = tokenizer(said)["input_ids"] if said else []
    tokens = torch.tensor([tokens + [tokenizer.eos_token_id] * ends], dtype=torch.long)

    def scripted(**inputs: Any) -> torch.Tensor:
        generate(**inputs)
        return torch.cat([inputs["input_ids"], tokens], dim=1)

    monkeypatch.setattr(loaded().model, "generate", scripted)
    page = reading_pictures()[0]
    assert page.printed == "37"
    shown = read_picture(loaded(), page)
    assert shown.unpruned.text == shown.pruned.text == said
    assert shown.unpruned.right is shown.pruned.right is right


def test_words_for_right_wrong_and_unprintable() -> None:
    assert tables.answer_text(Answer("37", True, 0)) == "37 (right)"
    assert tables.answer_text(Answer("73", False, 0)) == "73 (wrong)"
    assert tables.answer_text(Answer(" ", False, 0)) == "nothing (wrong)"
    assert tables.answer_text(Answer("\x1b[1m", False, 0)) == "·[1m (wrong)"


# -- table, panels, command --------------------------------------------------------------------


def mixed() -> list[Reading]:
    """As a trained model might answer: right, and wrong once pruned on the photograph."""
    page, photo = readings()
    return [
        replace(
            page,
            unpruned=replace(page.unpruned, text="37", right=True),
            pruned=replace(page.pruned, text="37", right=True),
        ),
        replace(
            photo,
            unpruned=replace(photo.unpruned, text="87", right=True),
            pruned=replace(photo.pruned, text="[b]8", right=False),
        ),
    ]


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def expected_rows(shown: Sequence[Reading]) -> list[list[str]]:
    rows = []
    for reading in shown:
        row = reading.report.rows[0]
        before, after = reading.unpruned.kv_bytes, reading.report.kv_bytes.after_prefill
        tokens = (row.visual_tokens, len(row.images[0].kept), len(row.kept))
        rows.append(
            [
                reading.picture.name,
                f"{reading.picture.asked}?",
                reading.picture.printed,
                tables.answer_text(reading.unpruned),
                tables.answer_text(reading.pruned),
                " -> ".join(map(str, tokens)),
                str(row.layer),
                f"{before / 1024:.0f} -> {after / 1024:.0f}",
            ]
        )
    return rows


def test_table_puts_both_answers_beside_the_right_one() -> None:
    shown = mixed()
    console = Console(record=True, width=160)
    console.print(tables.reading_table(shown))
    rows = table_rows(console.export_text())
    assert rows == expected_rows(shown)
    assert rows[0][1:5] == ["K?", "37", "37 (right)", "37 (right)"]
    assert rows[1][1:5] == ["F?", "87", "87 (right)", "[b]8 (wrong)"]
    assert [row[5][-5:] for row in rows] == ["-> 38"] * 2
    console = Console(record=True, width=80)
    console.print(tables.reading_table(shown))
    narrow = console.export_text()
    assert "…" not in narrow
    assert "(right)" in narrow
    assert "(wrong)" in narrow


def test_panels_carry_question_and_answers() -> None:
    figure = demo_figure([], mixed())
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == (
        "labelled page: asked K?, printed 37\nunpruned says 37 (right), pruned says 37 (right)"
    )
    kept = [len(reading.report.rows[0].images[0].kept) for reading in readings()]
    assert titles[2].startswith(f"stage 1 keeps {kept[0]} of 256 ")
    assert titles[3] == "stage 2 keeps 38 of 256 (14.8%)\nafter decoder layer 1"
    assert titles[4].endswith("unpruned says 87 (right), pruned says [b]8 (wrong)")
    assert titles[6].startswith(f"stage 1 keeps {kept[1]} of 256 ")
    assert titles[7] == "stage 2 keeps 38 of 256 (14.8%)\nafter decoder layer 4"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command with a speed part that tests can bear, in an empty folder."""
    monkeypatch.setattr(cli, "DemoSettings", functools.partial(DemoSettings, **SMALL))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_reads_then_times_ones_own_picture(small: Path) -> None:
    builtin_pictures()[1].image.save(small / "mine.png")
    shown = run(
        "--reader", stored(), "--image", "mine.png", "--max-new-tokens", 1, "-o", "both.png"
    )
    assert shown.exit_code == 0, shown.output  # although the answers are wrong
    reading, speed = shown.output.split("mine.png: ")
    assert table_rows(reading) == expected_rows(readings())
    plain = " ".join(shown.output.split())
    millions = sum(weight.numel() for weight in loaded().model.parameters()) / 1e6
    size = f"8 decoder layers, {millions:.1f} million parameters"
    assert f"{size}, trained to read such labels and nothing else" in plain
    assert "28 decoder layers" in plain
    assert "The model that is timed" in plain
    assert "its weights are random" in plain
    assert "labelled" not in speed
    assert "To see a trained one read" not in plain
    with Image.open(small / "both.png") as picture:
        assert picture.height > 2.3 * picture.width / 4  # three lines of four panels


def test_without_a_reader_the_command_only_times(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("load_reader", "reading_pictures"):
        monkeypatch.delattr(cli, work)
    monkeypatch.delattr("erase.demo.reading.read_picture")
    builtin_pictures()[1].image.save(small / "mine.png")
    shown = run("--image", "mine.png", "--max-new-tokens", 1)
    assert shown.exit_code == 0, shown.output
    plain = " ".join(shown.output.split())
    assert "labelled" not in plain
    assert f"To see a trained one read labels too: erase demo {tables.READER_OPTION}" in plain


def test_reading_needs_the_demo_extra(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_pictures()[1].image.save(small / "mine.png")
    monkeypatch.setitem(sys.modules, "skimage", None)
    shown = run("--reader", stored(), "--image", "mine.png")
    assert shown.exit_code == 1
    plain = " ".join(shown.output.split())
    assert "the labelled page and photograph of --reader needs scikit-image" in plain


def test_make_demo_passes_the_committed_weights() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ndemo: build\n")[1].splitlines()[0]
    assert recipe.endswith(f"-m erase demo {tables.READER_OPTION}")
    assert f"--reader {WEIGHTS.relative_to(ROOT)}" == tables.READER_OPTION
