"""A trained reader on a labelled page and a labelled photograph, unpruned and pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import erase
from erase.demo.labels import PAPER, Label, print_labels
from erase.demo.pictures import Picture, photograph, scanned_page
from erase.demo.reader import Reader
from erase.demo.run import prompt_inputs
from erase.demo.timing import ForwardWatch
from erase.demo_assets import load_processor, load_tokenizer
from erase.inspection import cell_side, image_processor, resize
from erase.report import PrefillReport

SIDE = 448
"""Pixels of a picture's side: 16 x 16 visual tokens of 28 pixels."""
STRIP = (196, 98)
"""Width and height in pixels to which the scan is scaled: its print is then 7 pixels high, well
below the labels, as on any page with stamps on it."""
COLUMNS, ROWS = (14, 238), (14, 154, 294)
"""Where copies of the scan begin on the sheet: two columns of three, with margins and gaps."""
STAMP_MARGIN = 5
"""Pixels cleared around a label on the page."""
PALE_CONTRAST = 0.35
"""Share of the photograph's contrast that is left under labels printed directly on it."""
PALE_MEAN = 130.0
"""Brightness of the paled photograph, gray levels."""
MAX_ANSWER_TOKENS = 8
"""An answer is two digits and the end of the turn; one that rambles on is seen to do so."""

PAGE_LABELS = (
    Label("K37", (318, 30), (170, 30, 40), "DejaVuSans-Bold", 24),
    Label("D81", (60, 92), (20, 60, 150), "DejaVuSans", 25),
    Label("M05", (226, 150), (20, 20, 20), "DejaVuSansMono", 24),
    Label("T94", (356, 236), (30, 110, 50), "DejaVuSerif", 25),
    Label("R62", (104, 300), (120, 40, 130), "DejaVuSans-Bold", 22),
    Label("X18", (262, 392), (150, 70, 10), "DejaVuSans", 26),
)
PHOTO_LABELS = (
    Label("H46", (52, 40), (10, 20, 60), "DejaVuSans", 25),
    Label("W73", (350, 66), (60, 0, 20), "DejaVuSans-Bold", 23),
    Label("A29", (196, 132), (255, 250, 220), "DejaVuSans-Bold", 24),
    Label("P50", (352, 190), (15, 15, 15), "DejaVuSerif", 26),
    Label("F87", (330, 300), (255, 255, 190), "DejaVuSans", 25),
    Label("C14", (118, 384), (250, 240, 255), "DejaVuSansMono", 26),
)


@dataclass(frozen=True)
class ReadingPicture:
    """A labelled picture, 8-bit RGB, and the letter of the label that is asked for."""

    name: str
    image: Image.Image
    labels: tuple[Label, ...]
    asked: str

    @property
    def prompt(self) -> Picture:
        """The picture with its question."""
        return Picture(self.name, self.image, f"{self.asked}?")

    @property
    def printed(self) -> str:
        """The right answer."""
        (label,) = (label for label in self.labels if label.key == self.asked)
        return label.value


@dataclass(frozen=True)
class Answer:
    """What one side said, up to the end of its turn, and bytes of its cache after the prefill."""

    text: str
    right: bool
    kv_bytes: int


@dataclass(frozen=True)
class Reading:
    """A picture, both answers, and the report of the pruned prefill.

    Attributes:
        image: u8 [3, H, W], as resized by the processor; ``cell``: side of a visual token in it.
        final_cells: i64, ascending cells of the image that stay after both stages.
    """

    picture: ReadingPicture
    image: Tensor
    cell: int
    method: erase.EraseConfig
    unpruned: Answer
    pruned: Answer
    report: PrefillReport
    final_cells: Tensor


def reading_pictures() -> list[ReadingPicture]:
    """A scanned page with stamped labels and a pale photograph with labels printed on it.

    Nothing is random: the same pixels each time, as far as Pillow and the fonts are the same.

    Raises:
        MissingExtraError: a package that brings the pictures or the fonts is not installed.
    """
    page = print_labels(_sheet(scanned_page()), PAGE_LABELS, STAMP_MARGIN)
    photo = print_labels(_paled(photograph("china")), PHOTO_LABELS)
    return [
        ReadingPicture("labelled page", page, PAGE_LABELS, "K"),
        ReadingPicture("labelled photo", photo, PHOTO_LABELS, "F"),
    ]


def _sheet(scan: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    strip = scan.resize(STRIP, Image.Resampling.LANCZOS)
    for left in COLUMNS:
        for top in ROWS:
            sheet.paste(strip, (left, top))
    return sheet


def _paled(photo: Image.Image) -> Image.Image:
    """The middle square with less contrast around a medium gray."""
    square = ImageOps.fit(photo, (SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(square, dtype=np.float64)
    pale = (pixels - pixels.mean()) * PALE_CONTRAST + PALE_MEAN
    return Image.fromarray(np.clip(np.rint(pale), 0, 255).astype(np.uint8))


def read_all(
    labelled: Iterable[tuple[Reader, ReadingPicture]], step: Callable[[str], None]
) -> list[Reading]:
    """`read_picture` of each pair; ``step`` is told before each what is being done."""
    readings = []
    for reader, picture in labelled:
        step(f"reading: {picture.name}")
        readings.append(read_picture(reader, picture))
    return readings


def read_picture(reader: Reader, picture: ReadingPicture) -> Reading:
    """Asks for one label, unpruned and pruned; the model is left as it was.

    Args:
        reader: its model without an open session.
    """
    area = picture.image.width * picture.image.height
    resizer = image_processor(area, area)
    processor = load_processor(resizer)
    inputs = prompt_inputs(processor, picture.prompt).to(reader.model.device)
    unpruned = _answer(reader.model, inputs, picture, nullcontext())
    session = erase.prune(reader.model, reader.method, processor=processor)
    pruned = _answer(reader.model, inputs, picture, session)
    report = session.report
    if report is None:
        raise RuntimeError("the pruned prompt left no report: its prefill was not seen")
    first = int((inputs["input_ids"][0] == reader.model.config.image_token_id).nonzero()[0])
    return Reading(
        picture=picture,
        image=resize(picture.image, resizer),
        cell=cell_side(resizer),
        method=reader.method,
        unpruned=unpruned,
        pruned=pruned,
        report=report,
        final_cells=report.rows[0].kept - first,
    )


def _answer(
    model: Any, inputs: Any, picture: ReadingPicture, session: AbstractContextManager[Any]
) -> Answer:
    tokenizer = load_tokenizer()
    special = set(tokenizer.added_tokens_decoder) - {tokenizer.eos_token_id}
    with torch.no_grad(), session, ForwardWatch(model) as watch:
        output = model.generate(
            **inputs,
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Whoever answers in words needs none of them; an untrained model would emit them.
            suppress_tokens=sorted(special),
        )
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    ended = tokens[-1:] == [tokenizer.eos_token_id]
    text = tokenizer.decode(tokens[:-1] if ended else tokens)
    return Answer(text, ended and text == picture.printed, watch.kv_bytes[0])
